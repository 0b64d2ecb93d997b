"""Replicated tensors stay equal on all ranks, bit for bit."""

import hashlib
from collections import defaultdict
from dataclasses import replace

import pytest

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.settings import machine_precision
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from ernie_vilg.parallel.state.compare_replicas import Difference, check_replicas
from tests.distributed import run_distributed
from tests.parallel.parity import Row, Variant, config_of, train

STEPS, CHECK_EVERY = 50, 10
WHOLE = Variant(
    attention="sparse",
    reconstructor="end_to_end",
    checkpointing="selective",
    sequence_parallel=True,
    extra="all norms",
)
DROPOUT = Variant(extra="dropout")  # tensor ranks must drop the same values


def hashes_after_training(
    launch: Launch, config: PretrainConfig
) -> tuple[list[Difference], list[tuple[str, int, str]]]:
    """Return the differences found in training, and this rank's weights as (name, rank, hash).

    The rank is the tensor rank of a split weight, and -1 for others.
    """
    device = start_processes(launch, timeout_seconds=120)
    layout = config.parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    engine = build_engine(config, groups, machine_precision("bf16", device))
    found: list[Difference] = []
    for _ in range(STEPS // CHECK_EVERY):
        train(engine, config, CHECK_EVERY)
        found += check_replicas(engine).differences
    return found, [
        (
            name,
            groups.tensor_rank if split_dimension(name) is not None else -1,
            hashlib.sha256(value.detach().float().numpy().tobytes()).hexdigest(),
        )
        for name, value in engine.local_parameters()
    ]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "variant"),
    [
        pytest.param((2, 1, 1), WHOLE, id="tensor 2"),
        pytest.param((2, 1, 2), WHOLE, id="and data 2", marks=pytest.mark.slow),
        pytest.param((2, 1, 2), DROPOUT, id="with dropout", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), WHOLE, id="and pipeline 2", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), DROPOUT, id="and both", marks=pytest.mark.slow),
    ],
)
def test_replicated_weights_are_bitwise_equal_after_50_steps(
    layout: tuple[int, int, int], variant: Variant
) -> None:
    """Neither the check nor hashes of the weights find a difference between tensor ranks."""
    tensor, pipeline, data = layout
    row = Row(tensor=tensor, pipeline=pipeline, data=data, variant=variant)
    config = config_of(row)
    one_pass = replace(config.parallelism, global_batch_size=2 * data)  # of 2 pairs each
    config = replace(config, parallelism=one_pass)

    ranks = run_distributed(hashes_after_training, tensor * pipeline * data, config)

    copies: dict[tuple[str, int], list[str]] = defaultdict(list)
    for found, hashes in ranks:
        assert not found
        for name, share, digest in hashes:
            copies[name, share].append(digest)

    for (name, share), digests in copies.items():
        assert len(digests) == (data if share >= 0 else data * tensor), name
        assert len(set(digests)) == 1, name
