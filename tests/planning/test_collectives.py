"""The list of a step's collectives equals what a real step runs."""

from collections import Counter
from dataclasses import replace

import pytest

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.engine import gradient_reduction
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.settings import machine_precision
from ernie_vilg.parallel.layout.collectives import agree_max
from ernie_vilg.parallel.layout.coordinates import coordinates_of
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes
from ernie_vilg.planning import collectives
from ernie_vilg.planning.collectives import Exchange, step_collectives
from tests.collectives_trace import CollectivesTrace, Traced
from tests.distributed import run_distributed
from tests.parallel.parity import LEARNING_RATE, Row, Variant, config_of, micro_batches

SPLIT = Variant(sequence_parallel=True, checkpointing="full", extra="all norms")
END_TO_END = Variant(reconstructor="end_to_end", checkpointing="selective")
ROWS = [
    Row(tensor=2, pipeline=1, data=1, variant=SPLIT),
    Row(tensor=2, pipeline=1, data=1, variant=replace(END_TO_END, checkpointing="full")),
    Row(tensor=1, pipeline=2, data=1),
    Row(tensor=1, pipeline=1, data=2),
    Row(tensor=1, pipeline=1, data=2, variant=Variant(has_groups=True)),
]
"""Layouts of two ranks."""
LARGER_ROWS = [
    Row(tensor=2, pipeline=2, data=1, variant=replace(SPLIT, checkpointing="selective")),
    Row(tensor=2, pipeline=2, data=1, variant=END_TO_END),
    Row(tensor=1, pipeline=2, data=2, variant=Variant(extra="tied embeddings")),
    Row(tensor=1, pipeline=4, data=1),
]
"""Layouts of four ranks."""


def expected(config: PretrainConfig, groups: Groups) -> Counter[Traced]:
    """Return the list for this rank as its groups' members."""
    precision = machine_precision(config.precision, groups.device)
    listed = step_collectives(config, groups.world_size, precision)[groups.pipeline_rank]
    counts: Counter[Traced] = Counter()
    for each in listed:
        counts[Traced(each.kind, members(each, groups), each.num_bytes)] += each.count
    return counts


def members(exchange: Exchange, groups: Groups) -> tuple[int, ...]:
    """Return the ranks of an exchange of this rank."""
    if exchange.group in (collectives.NEXT, collectives.PREVIOUS):
        step = groups.world_size // groups.pipeline_size
        peer = groups.rank + (step if exchange.group == collectives.NEXT else -step)
        return (groups.rank, peer) if exchange.kind == "send" else (peer, groups.rank)
    mine = coordinates_of(groups.rank, groups)
    free_axes = {
        collectives.ALL: {"pipeline", "data", "tensor"},
        collectives.TENSOR: {"tensor"},
        collectives.REPLICAS: {"data"},
        collectives.ENDS: {"pipeline"},
    }
    fixed = set(mine._fields) - free_axes[exchange.group]
    others = {rank: coordinates_of(rank, groups) for rank in range(groups.world_size)}
    return tuple(
        rank
        for rank, other in others.items()
        if all(getattr(other, axis) == getattr(mine, axis) for axis in fixed)
        and (exchange.group != collectives.ENDS or other.pipeline in (0, groups.pipeline_size - 1))
    )


def compare(
    launch: Launch, configs: list[PretrainConfig], range_size: int
) -> list[tuple[Counter[Traced], Counter[Traced]]]:
    """Return the collectives of each run's second step, traced and listed."""
    defaults = gradient_reduction.GradientReduction.__init__.__kwdefaults__
    defaults["range_size"] = collectives.RANGE_SIZE = range_size  # this process ends with the test
    device = start_processes(launch, timeout_seconds=120)
    layout = configs[0].parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    results = []
    for config in configs:
        engine = build_engine(config, groups, machine_precision(config.precision, device))
        engine.train_batch(micro_batches(groups, config, 0), LEARNING_RATE)
        with CollectivesTrace() as trace:
            engine.train_batch(micro_batches(groups, config, 1), LEARNING_RATE)
            agree_max([0, 0])
        traced = Counter({key: n for key, n in trace.counts.items() if len(key.members) > 1})
        results.append((traced, expected(config, groups)))
    return results


def check(row: Row, range_size: int = gradient_reduction.RANGE_SIZE) -> None:
    configs = [replace(config_of(row), precision=precision) for precision in ("bf16", "fp32")]
    ranks = run_distributed(compare, row.tensor * row.pipeline * row.data, configs, range_size)

    for results in ranks:
        for traced, listed in results:
            assert listed == traced


@pytest.mark.distributed
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_two_ranks_run_what_is_listed(row: Row) -> None:
    check(row)


def test_ranges_are_listed_as_long_as_they_are() -> None:
    assert collectives.RANGE_SIZE == gradient_reduction.RANGE_SIZE


@pytest.mark.distributed
def test_large_sums_are_reduced_in_ranges() -> None:
    check(Row(tensor=1, pipeline=1, data=2), range_size=1000)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("row", LARGER_ROWS, ids=lambda row: row.id)
def test_four_ranks_run_what_is_listed(row: Row) -> None:
    check(row)
