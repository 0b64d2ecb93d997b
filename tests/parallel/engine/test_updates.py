"""The update of ZeRO 1 is DeepSpeed's, with fewer passes over the gradients."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.engine import updates
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.gradient_reduction import GradientReduction
from ernie_vilg.parallel.engine.updates import DeepSpeedUpdate, Zero1Update
from ernie_vilg.parallel.engine.zero_shards import Bf16Shards, FlatGroup
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import batches_of_step, run_config

FP32, BF16 = torch.float32, torch.bfloat16
STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Steps:
    """One rank's steps."""

    losses: list[list[float]]
    """Losses of the global batch, for each step."""
    norms: list[float]
    """Norm of the whole gradient, for each step."""
    shards: list[Tensor]
    """Float32 weights that this rank updates, at the end."""
    weights: list[Tensor]
    """Weights that the model computes with, at the end."""


@contextmanager
def updates_of(who: str) -> Iterator[None]:
    """Let DeepSpeed reduce and update in the block, or ZeRO 1's update with ranges of a toy."""
    with pytest.MonkeyPatch.context() as patches:
        if who == "deepspeed":
            patches.setattr(Bf16Shards, "flat_groups", lambda shards: [])
        else:
            ranges = partial(GradientReduction, range_size=1500)
            patches.setattr(updates, "GradientReduction", ranges)
        yield


def take_steps(
    launch: Launch, config: PretrainConfig, precisions: tuple[torch.dtype, ...]
) -> dict[tuple[str, torch.dtype], Steps]:
    """Take the same steps with both updates, in each precision."""
    device = start_processes(launch, timeout_seconds=60)
    layout = config.parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    taken = {}
    for who in ("deepspeed", "ours"):
        for precision in precisions:
            with updates_of(who):
                engine = build_engine(config, groups, precision)
            kind = DeepSpeedUpdate if who == "deepspeed" else Zero1Update
            assert type(engine.update) is kind
            # It would round sums to bfloat16 before it reduces them, even on one rank.
            engine.deepspeed_engine.communication_data_type = FP32
            steps = Steps(losses=[], norms=[], shards=[], weights=[])
            for step in range(STEPS):
                losses = engine.train_batch(batches_of_step(engine, step), learning_rate=1e-2)
                steps.losses.append(engine.mean_losses(losses).tolist())
                steps.norms.append(engine.gradient_norm())
            steps.shards.extend(shard.detach().clone() for shard in engine.shards.tensors())
            steps.weights.extend(each.detach().clone() for _, each in engine.local_parameters())
            taken[who, precision] = steps
            del engine
            gc.collect()
    return taken


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("num_ranks", "layout", "model", "precisions"),
    [
        pytest.param(1, {}, {}, (FP32, BF16), id="one rank"),
        pytest.param(
            2,
            {"pipeline_parallel_size": 2},
            {"tied_embeddings": True},
            (FP32, BF16),
            id="two stages",
        ),
        pytest.param(
            4,
            {"tensor_parallel_size": 2, "sequence_parallel": True},
            {"qk_norm": True, "sandwich_norm": True},
            (FP32,),  # DeepSpeed gets partial gradients that were summed in bfloat16
            id="two replicas of two tensor ranks",
        ),
    ],
)
def test_updates_are_those_of_deepspeed(
    tmp_path: Path,
    num_ranks: int,
    layout: dict[str, Any],
    model: dict[str, Any],
    precisions: tuple[torch.dtype, ...],
) -> None:
    config = run_config(tmp_path, **layout)  # which clips every gradient
    config = replace(config, model=replace(config.model, **model))

    for taken in run_distributed(take_steps, num_ranks, config, precisions):
        for precision in precisions:
            ours, theirs = taken["ours", precision], taken["deepspeed", precision]
            assert min(ours.norms) > config.optimizer.gradient_clipping
            assert ours.losses[0] == theirs.losses[0]
            assert ours.losses[1] == pytest.approx(theirs.losses[1], rel=1e-6)
            # Sums of the same numbers in another order, in float32.
            assert ours.norms == pytest.approx(theirs.norms, rel=1e-6)
            # Steps are as long as the learning rate, 1e-2.
            differences = [
                (one - other).abs().max().item()
                for one, other in zip(ours.shards, theirs.shards, strict=True)
            ]
            assert max(differences) <= 1e-6
            for one, other in zip(ours.weights, theirs.weights, strict=True):
                assert one.dtype == precision
                assert one.allclose(other, rtol=2**-7, atol=1e-6)  # one unit of bfloat16


class Passes(TorchDispatchMode):
    """Notes the operators of a step that touch the flat sums as a whole, and those of norms."""

    def __init__(self, sums: list[Tensor]) -> None:
        super().__init__()
        self._sums = {each.data_ptr(): each.numel() for each in sums}
        self.whole: list[str] = []
        """Operators with a flat tensor of sums among their arguments, in order."""
        self.normed = 0
        """Number of elements of which a norm was computed."""
        self.reads: list[str] = []
        """Operators that read a number on the host."""

    def inside(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Return `call` with this mode on."""

        def noted() -> Any:
            with self:
                return call()

        return noted

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note an operator and call it."""
        name = operator.overloadpacket.__name__
        flat = [
            tensor
            for argument in args
            for tensor in (argument if isinstance(argument, list | tuple) else [argument])
            if isinstance(tensor, Tensor)
        ]
        if any(self._sums.get(tensor.data_ptr()) == tensor.numel() for tensor in flat):
            self.whole.append(name)
        if "norm" in name and "layer_norm" not in name:
            self.normed += sum(tensor.numel() for tensor in flat)
        if name == "_local_scalar_dense":
            self.reads.append(name)
        return operator(*args, **(kwargs or {}))


def passes_of_a_step(
    launch: Launch, config: PretrainConfig
) -> tuple[list[str], int, list[str], int]:
    """Return what `Passes` notes of an update and of zeroing, and the number of parameters."""
    device = start_processes(launch, timeout_seconds=60)
    engine = build_engine(config, build_groups(1, 1, device), BF16)
    batches = batches_of_step(engine, 0)
    engine.train_batch(batches, learning_rate=1e-2)
    passes = Passes([group.sums for group in engine.shards.flat_groups()])
    optimizer = engine.deepspeed_engine.optimizer
    for method in ("step", "clear_hp_grads"):
        setattr(optimizer, method, passes.inside(getattr(optimizer, method)))
    engine.train_batch(batches, learning_rate=1e-2)
    num_parameters = sum(each.numel() for _, each in engine.local_parameters())
    return passes.whole, passes.normed, passes.reads, num_parameters


def test_an_update_reads_gradients_for_one_norm_and_for_adamw_and_zeroes_them_once(
    tmp_path: Path,
) -> None:
    config = run_config(tmp_path)

    ((whole, normed, reads, num_parameters),) = run_distributed(passes_of_a_step, 1, config)

    # Without padding, the norm of one rank has every parameter once.
    assert normed == num_parameters
    # Two groups, with and without weight decay; each is so small that it is one segment.
    others = [name for name in whole if name != "_foreach_norm"]
    assert others == ["_fused_adamw_", "_fused_adamw_", "zero_", "zero_"]
    assert whole.count("_foreach_norm") <= 1
    assert reads == []


def test_norms_of_many_gradients_are_exact() -> None:
    sums = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
    weight: Any = nn.Parameter(torch.empty(0))
    weight.tensor_model_parallel = True
    shards: Any = MagicMock()
    shards.flat_groups.return_value = [
        FlatGroup(
            sums=sums,
            own_sums=sums,
            shard=sums,
            partition_start=0,
            positions={weight: slice(0, len(sums))},
        )
    ]
    update = Zero1Update(
        shards, MagicMock(), MagicMock(data_size=1, tensor_rank=0), gradient_clipping=1.0
    )

    norm, squares = update.norms()

    assert norm.item() == pytest.approx(sums.double().norm().item(), rel=1e-6)
    assert squares.item() == pytest.approx(sums.double().square().sum().item(), rel=2e-6)
