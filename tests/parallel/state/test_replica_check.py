"""The check finds one changed bit in a replicated tensor and names the rank."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.state.compare_replicas import (
    Digests,
    ReplicaReport,
    check_replicas,
    outvoted,
)
from tests.distributed import run_distributed
from tests.parallel.optimizer_runs import batches_of_step, run_config
from tests.training.runs import start

NORM = "1.attention_branch.norm.weight"
"""Name of a parameter that is whole on every tensor rank."""
SPLIT = "1.feed_forward.up.weight"


DIGESTS = Digests()


def number(tensor: Tensor) -> int:
    return int(DIGESTS.of(tensor))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        pytest.param(torch.float32, 7, id="float32, read by four bytes"),
        pytest.param(torch.bfloat16, 6, id="bfloat16, read by four"),
        pytest.param(torch.bfloat16, 7, id="bfloat16, read by two"),
        pytest.param(torch.uint8, 7, id="bytes"),
    ],
)
def test_every_bit_of_a_tensor_changes_its_number(dtype: torch.dtype, size: int) -> None:
    tensor = (10 * torch.randn(size, generator=torch.Generator().manual_seed(0))).to(dtype)
    raw = tensor.view(torch.uint8)
    numbers = {number(tensor)}
    for place in range(len(raw)):
        for bit in range(8):
            changed = raw.clone()
            changed[place] ^= 1 << bit
            numbers.add(number(changed.view(dtype)))

    assert len(numbers) == 1 + 8 * len(raw)


def test_numbers_tell_apart_what_comparing_values_does_not() -> None:
    zeros, nans = torch.tensor([0.0, -0.0]), torch.full((2,), torch.nan)

    assert number(zeros[:1]) != number(zeros[1:])
    assert number(nans) == number(nans.clone())


def test_the_order_of_values_changes_the_number_across_blocks() -> None:
    values = torch.zeros(2**20)
    values[[3, 2**19 + 3]] = torch.tensor([1.0, 2.0])

    assert number(values) != number(values.flip(0))
    assert number(values) != number(values.roll(2**19))


def test_changes_of_many_signs_do_not_cancel() -> None:
    values = torch.ones(64)

    assert len({number(torch.cat([-values[:count], values[count:]])) for count in range(65)}) == 65


def test_where_a_tensor_lies_in_memory_does_not_change_its_number() -> None:
    values = torch.randn(9, generator=torch.Generator().manual_seed(0))

    assert number(values[1:]) == number(values[1:].clone())


@pytest.mark.parametrize(
    ("numbers", "suspects"),
    [
        pytest.param({0: 5, 2: 5, 4: 6}, (4,), id="one against two"),
        pytest.param({0: 5, 1: 6}, (0, 1), id="one against one"),
        pytest.param({0: 5, 1: 6, 2: 7, 3: 5}, (0, 1, 2, 3), id="half is no majority"),
        pytest.param({0: 5, 1: 6, 2: 7, 3: 5, 4: 5}, (1, 2), id="two that differ from each other"),
    ],
)
def test_vote(numbers: dict[int, int], suspects: tuple[int, ...]) -> None:
    assert outvoted(numbers) == suspects


Fault = Callable[[Engine], Tensor]
"""Returns the tensor of an engine in which to change one bit."""


def reports(
    launch: Launch, config: PretrainConfig, faults: list[tuple[int, Fault]]
) -> list[ReplicaReport]:
    """Return the reports before all faults, with each fault on one rank, and after."""
    engine = start(launch, config, torch.bfloat16)
    for step in range(2):
        engine.train_batch(batches_of_step(engine, step), learning_rate=1e-2)
    found = [check_replicas(engine)]
    for rank, fault in faults:
        if launch.rank == rank:
            flip_bit(fault(engine))
        found.append(check_replicas(engine))
        if launch.rank == rank:
            flip_bit(fault(engine))  # change it back
    return [*found, check_replicas(engine)]


def flip_bit(tensor: Tensor) -> None:
    """Flip the last bit of a tensor's first value."""
    assert tensor.is_contiguous()
    tensor.detach().reshape(-1)[:1].view(torch.int16 if tensor.itemsize == 2 else torch.int32)[
        0
    ] ^= 1


def weight(engine: Engine, name: str) -> Tensor:
    return dict(engine.local_parameters())[name]


def norm_weight(engine: Engine) -> Tensor:
    return weight(engine, NORM)


def split_weight(engine: Engine) -> Tensor:
    return weight(engine, SPLIT)


def mask(engine: Engine) -> Tensor:
    buffers: dict[str, Tensor] = dict(engine.deepspeed_engine.module.named_buffers())
    return next(iter(buffers.values())).reshape(-1)[:4].view(torch.uint8).view(torch.int32)


def own_copy(engine: Engine, key: str | None) -> Tensor:
    """Return a tensor rank's own float32 copy or moment of a parameter."""
    mapping = norm_weight(engine)._hp_mapping  # type: ignore[attr-defined]
    tensor: Tensor = mapping.hp_fragment if key is None else mapping.optim_fragment[key]
    return tensor.detach()


def master(engine: Engine) -> Tensor:
    return own_copy(engine, None)


def moment(engine: Engine) -> Tensor:
    return own_copy(engine, "exp_avg_sq")


def average(engine: Engine) -> Tensor:
    return own_copy(engine, WEIGHT_AVERAGE)


def last_table(engine: Engine) -> Tensor:
    return weight(engine, "3.text_logits.weight")


def found(report: ReplicaReport) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(each.kind, each.name, each.suspects) for each in report.differences]


@pytest.mark.distributed
def test_one_changed_bit_is_found_and_its_rank_named(tmp_path: Path) -> None:
    """The layout has two replicas of two tensor ranks."""
    config = run_config(tmp_path, ema_decay=0.5, tensor_parallel_size=2)
    holder = 2  # the second replica has this parameter's part of the optimizer's state
    faults: list[tuple[int, Fault]] = [
        (3, norm_weight),
        (2, split_weight),
        (1, mask),
        (holder, master),
        (holder + 1, moment),
        (holder + 1, average),
    ]

    ranks = run_distributed(reports, 4, config, faults)

    assert all(rank == ranks[0] for rank in ranks)
    healthy, *faulty, healed = ranks[0]
    assert healthy.differences == healed.differences == ()
    assert [found(report) for report in faulty] == [
        [("weight", NORM, (3,))],
        [("weight", SPLIT, (0, 2))],  # two copies only: no majority
        [("constant", faulty[2].differences[0].name, (1,))],
        [("float32 weight", NORM, (2, 3))],
        [("second moment", NORM, (2, 3))],
        [("average", NORM, (2, 3))],
    ]
    assert faulty[0].ranks[3].startswith("rank 3 = tensor 1, pipeline 0, data 1 on ")


@pytest.mark.distributed
def test_tied_tables_of_two_stages_are_compared(tmp_path: Path) -> None:
    config = run_config(tmp_path, pipeline_parallel_size=2)
    config = replace(config, model=replace(config.model, tied_embeddings=True))

    healthy, faulty, _ = run_distributed(reports, 2, config, [(1, last_table)])[0]

    assert healthy.differences == ()
    assert found(faulty) == [("weight", "0.text_embedding.weight", (0, 1))]


@pytest.mark.distributed
def test_shares_of_zero_3_are_compared_between_tensor_ranks(tmp_path: Path) -> None:
    config = run_config(tmp_path, tensor_parallel_size=2, zero_stage=3)

    healthy, faulty, _ = run_distributed(reports, 2, config, [(1, first_share)])[0]

    assert healthy.differences == ()
    assert [kind for kind, _, _ in found(faulty)] == ["float32 weight"]


def first_share(engine: Engine) -> Tensor:
    optimizer: Any = engine.deepspeed_engine.optimizer
    for group, shares in zip(
        optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True
    ):
        if not getattr(group[0], "tensor_model_parallel", False):
            share: Tensor = shares
            return share
    raise AssertionError("no parameter is whole on every tensor rank")
