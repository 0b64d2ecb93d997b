"""Gradients that are summed where they are made are those that DeepSpeed sums itself."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor, nn

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.linear import SUMS, Linear
from ernie_vilg.parallel.engine import engine as engine_module
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.library_patches import replaced
from ernie_vilg.parallel.engine.zero_shards import Bf16Shards, ZeroShards
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import (
    HALFWAY,
    Result,
    batches_of_step,
    run_config,
    take_steps,
)

STEPS = 2
BF16, FP32 = torch.bfloat16, torch.float32

Sums = list[dict[str, Tensor]]
"""Sums of each step's gradients by name, before the update."""


@contextmanager
def summed_by_deepspeed() -> Iterator[None]:
    """Leave all gradients to autograd, and their sums to DeepSpeed."""

    def take_gradient(shards: Any, *place: Any) -> None:
        BF16_Optimizer.accumulate_hp_grads_and_remove_lp(shards._zero, *place)

    with (
        replaced(engine_module, attach_gradient_sums=lambda *_: None),
        replaced(Bf16Shards, _take_gradient=take_gradient),
    ):
        yield


def sums_of_steps(
    config: PretrainConfig, precision: torch.dtype, groups: Any
) -> tuple[Sums, list[float]]:
    engine = build_engine(config, groups, precision)
    optimizer: Any = engine.deepspeed_engine.optimizer
    update, sums = optimizer.step, []
    names = {parameter: name for name, parameter in engine.local_parameters()}

    def step() -> None:
        zipped = zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True)
        sums.append(
            {
                names[parameter]: gradient.clone()
                for parameters, gradients in zipped
                for parameter, gradient in zip(parameters, gradients, strict=True)
            }
        )
        assert all(parameter.grad is None for parameter in names)
        update()

    optimizer.step = step
    norms = []
    for index in range(STEPS):
        engine.train_batch(batches_of_step(engine, index), learning_rate=1e-2)
        norms.append(engine.gradient_norm())
    return sums, norms


def is_attached(engine: Any) -> bool:
    return any(hasattr(parameter, SUMS) for _, parameter in engine.local_parameters())


def compare(
    launch: Launch, configs: list[PretrainConfig], precision: torch.dtype
) -> list[list[tuple[Sums, list[float]]]]:
    """Return each run's sums and norms, with and without our own summation."""
    device = start_processes(launch, timeout_seconds=60)
    layout = configs[0].parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    results = []
    for config in configs:
        ours = sums_of_steps(config, precision, groups)
        gc.collect()  # DeepSpeed's engines are cycles of references
        with summed_by_deepspeed():
            results.append([ours, sums_of_steps(config, precision, groups)])
    return results


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "layouts", "models"),
    [
        pytest.param(
            1,
            [
                {},
                {},
                {"activation_checkpointing": "selective"},
                {"activation_checkpointing": "full"},
            ],
            [{}, {"dropout": 0.2}, {}, {}],
            id="one process: plain, dropout, selective and full checkpointing",
        ),
        pytest.param(
            2,
            [{"pipeline_parallel_size": 2}] * 2,
            [{}, {"tied_embeddings": True}],
            id="pipeline 2: separate and tied embeddings",
        ),
    ],
)
def test_bfloat16_sums_are_deepspeeds_bit_for_bit(
    tmp_path: Path, world_size: int, layouts: list[Any], models: list[dict[str, Any]]
) -> None:
    configs = [run_of(tmp_path, *both) for both in zip(layouts, models, strict=True)]

    for runs in run_distributed(compare, world_size, configs, BF16):
        for (ours, norms), (theirs, their_norms) in runs:
            assert norms == their_norms
            for one, other in zip(ours, theirs, strict=True):
                assert list(one) == list(other)
                assert any(sums.any() for sums in one.values())
                assert [name for name, sums in one.items() if not sums.equal(other[name])] == []


@pytest.mark.distributed
def test_both_gradients_of_a_tied_table_are_summed(tmp_path: Path) -> None:
    config = run_of(tmp_path, {}, {"tied_embeddings": True})

    (((ours, theirs),),) = run_distributed(compare, 1, [config], FP32)

    for one, other in zip(ours[0], theirs[0], strict=True):
        for name, sums in one.items():
            # They are added to the sums one after the other; autograd adds them first.
            torch.testing.assert_close(sums, other[name], rtol=1e-5, atol=1e-6, msg=name)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-5)


def run_of(folder: Path, layout: dict[str, Any], model: dict[str, Any]) -> PretrainConfig:
    config = run_config(folder, **layout)
    return replace(config, model=replace(config.model, **model))


def attached(launch: Launch, configs: list[PretrainConfig]) -> list[tuple[bool, bool, int, int]]:
    """Return each run's kind of optimizer, and how many weights have sums."""
    device = start_processes(launch, timeout_seconds=60)
    found = []
    for config in configs:
        engine = build_engine(config, build_groups(1, 1, device), FP32)
        weights = [
            layer.weight
            for layer in engine.deepspeed_engine.module.modules()
            if isinstance(layer, Linear)
        ]
        have = [weight for weight in weights if hasattr(weight, SUMS)]
        is_bf16 = type(engine.deepspeed_engine.optimizer) is BF16_Optimizer
        assert all(_is_part_of(engine.shards, weight) for weight in have)
        found.append((is_bf16, is_attached(engine), len(have), len(weights)))
    return found


def _is_part_of(shards: ZeroShards, weight: nn.Parameter) -> bool:
    """Return whether a weight's sums are a view of DeepSpeed's own buffer."""
    sums: Tensor = getattr(weight, SUMS)
    starts = [flat.untyped_storage().data_ptr() for flat in shards.gradients()]
    return sums.shape == weight.shape and sums.untyped_storage().data_ptr() in starts


@pytest.mark.distributed
def test_every_linear_weight_of_zero_1_has_sums_and_none_elsewhere(tmp_path: Path) -> None:
    layouts: list[dict[str, Any]] = [{}, {"zero_stage": 2}, {"offload_optimizer": True}]
    configs = [run_config(tmp_path, **layout) for layout in layouts]

    (zero1, zero2, offload), *_ = run_distributed(attached, 1, configs)

    assert zero1[:2] == (True, True)
    assert zero1[2] == zero1[3] > 0
    assert zero2[:3] == offload[:3] == (False, False, 0)


def with_deepspeeds_choice(launch: Launch, config: PretrainConfig, folder: Path) -> Result | None:
    with replaced(engine_module, one_optimizer_of_zero1=nullcontext):
        return take_steps(launch, config, FP32, folder)


@pytest.mark.distributed
def test_a_float32_checkpoint_of_deepspeeds_other_optimizer_continues(tmp_path: Path) -> None:
    """It has the same files and the same order of parameters."""
    config = run_config(tmp_path)

    (first,) = run_distributed(with_deepspeeds_choice, 1, config, tmp_path)
    saved = torch.load(next(tmp_path.rglob("zero_pp_rank_0*.pt")), weights_only=False)
    (second,) = run_distributed(take_steps, 1, config, FP32, tmp_path, HALFWAY)

    assert "loss_scaler" in saved["optimizer_state_dict"], "it is not the other one's"
    losses = torch.tensor(first.losses[HALFWAY:])
    torch.testing.assert_close(torch.tensor(second.losses), losses, rtol=1e-6, atol=0)
    for one, other in zip(first.weights[HALFWAY:], second.weights, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6, msg=name)
