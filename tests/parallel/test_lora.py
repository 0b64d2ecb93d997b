"""Adapters train and reshard under every kind of layout as on one process."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.lora import LoraConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.lora.names import is_adapter
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.parallel.state.gather import gather_to_leader
from tests.distributed import run_distributed
from tests.parallel.parity import (
    RELATIVE_TOLERANCE,
    History,
    Row,
    Variant,
    config_of,
    largest_difference,
    train,
)
from tests.parallel.resharding import SMALL, Hop, Seen, differing, take_hops

LORA = LoraConfig(rank=3)
ONE = Row(tensor=1, pipeline=1, data=1)
ROWS = [
    Row(tensor=2, pipeline=1, data=1),
    Row(
        tensor=2,
        pipeline=1,
        data=1,
        variant=Variant(sequence_parallel=True, checkpointing="selective"),
    ),
    Row(tensor=1, pipeline=2, data=1, variant=Variant(checkpointing="full")),
    Row(tensor=1, pipeline=1, data=2),
    Row(tensor=1, pipeline=1, data=2, variant=Variant(zero=3)),
]
SLOW_ROWS = [
    Row(tensor=2, pipeline=1, data=1, variant=Variant(zero=2, sequence_parallel=True)),
    Row(tensor=1, pipeline=1, data=2, variant=Variant(zero=2)),
    Row(tensor=1, pipeline=1, data=2, variant=Variant(offload=True)),
]
HOPS = [
    Hop(name="tensor", source="one", tensor=2),
    Hop(name="zero 3", source="tensor", zero=3),
    Hop(name="pipeline", source="zero 3", pipeline=2),
    Hop(name="tensor, zero 3", source="pipeline", tensor=2, zero=3),
]

Weights = dict[str, Tensor]


def lora_run(row: Row) -> PretrainConfig:
    config = config_of(row)
    model = replace(config.model, num_layers=2, lora=LORA, tied_embeddings=True)
    return replace(config, model=model, initialize_from="unused")


def train_rows(launch: Launch, rows: Sequence[Row]) -> list[tuple[History, Weights, Weights]]:
    """Return losses, first weights and last weights of each row; the leader has the weights."""
    device = start_processes(launch, timeout_seconds=120)
    results = []
    for row in rows:
        config = lora_run(row)
        engine = build_engine(config, build_groups(row.tensor, row.pipeline, device), torch.float32)
        first = gather_to_leader(engine) or {}
        history = train(engine, config)
        results.append((history, first, gather_to_leader(engine) or {}))
        del engine
        gc.collect()  # DeepSpeed's engines are cycles of references
    return results


@pytest.fixture(scope="module")
def one_process() -> tuple[History, Weights, Weights]:
    ((result,),) = run_distributed(train_rows, 1, [ONE])
    return result


@lru_cache(maxsize=1)  # fast rows come first
def on_two_processes(rows: tuple[Row, ...]) -> dict[Row, tuple[History, Weights, Weights]]:
    leader, _ = run_distributed(train_rows, 2, rows)
    return dict(zip(rows, leader, strict=True))


@pytest.mark.distributed
def test_only_adapters_change_and_the_second_matrix_starts_as_zero(
    one_process: tuple[History, Weights, Weights],
) -> None:
    _, first, last = one_process
    changed = {name for name, value in last.items() if not value.equal(first[name])}

    assert changed == {name for name in first if is_adapter(name)}
    assert len(changed) == 2 * 4 * 2  # matrices of 4 layers of 2 blocks
    assert not any(value.any() for name, value in first.items() if ".lora_b." in name)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "row",
    [
        *(pytest.param(row, id=row.id) for row in ROWS),
        *(pytest.param(row, id=row.id, marks=pytest.mark.slow) for row in SLOW_ROWS),
    ],
)
def test_every_layout_equals_one_process(
    row: Row, one_process: tuple[History, Weights, Weights]
) -> None:
    rows = ROWS if row in ROWS else SLOW_ROWS
    history, first, last = on_two_processes(tuple(rows))[row]
    expected, expected_first, _ = one_process

    assert largest_difference(history, expected) < RELATIVE_TOLERANCE
    assert all(first[name].equal(value) for name, value in expected_first.items())
    assert all(
        last[name].equal(value) for name, value in expected_first.items() if not is_adapter(name)
    )


@pytest.mark.distributed
def test_weights_moments_and_averages_reshard_bit_for_bit(tmp_path: Path) -> None:
    """Each layout loads the checkpoint of the one before, adapters and other weights."""
    targets = ("*.attention.output", "*.feed_forward.up")  # one split by inputs, one by outputs
    model = replace(SMALL, lora=replace(LORA, targets=targets))
    hops = [replace(hop, model=model, seed=1) for hop in HOPS]
    (origin,) = run_distributed(take_hops, 1, str(tmp_path), [Hop(name="one", model=model)])
    results, _ = run_distributed(take_hops, 2, str(tmp_path), hops)

    seen: list[Seen] = results
    expected = origin[0]
    for hop, result in zip(HOPS, seen, strict=True):
        assert differing(result.state, expected.state) == [], hop.name
        assert differing(_without_copies(result.model, expected.model), expected.model) == []
        assert result.steps == expected.steps
        assert result.next_losses == pytest.approx(expected.next_losses, rel=RELATIVE_TOLERANCE)


def _without_copies(model: Weights, expected: Weights) -> Weights:
    """Leave out the last stage's copies of tied weights."""
    return {name: value for name, value in model.items() if name in expected}
