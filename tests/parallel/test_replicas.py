"""What several ranks hold alike stays alike, bit for bit."""

import hashlib
from collections import defaultdict

import pytest

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.parallel.build import build_engine
from ernie_vilg.parallel.groups import build_groups, start_processes
from ernie_vilg.parallel.precision import machine_precision
from tests.distributed import run_distributed
from tests.parallel.parity import Row, Variant, config_of, train

STEPS = 50
WHOLE = Variant(
    attention="sparse",
    reconstructor="end_to_end",
    checkpointing="selective",
    sequence_parallel=True,
    extra="all norms",
)
DROPOUT = Variant(extra="dropout")  # tensor ranks must leave out the same values


def hashes_after_training(launch: Launch, config: PretrainConfig) -> list[tuple[str, int, str]]:
    """Return (name, tensor rank where the weight is split, hash) of this rank's weights."""
    device = start_processes(launch, timeout_seconds=120)
    layout = config.parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    engine = build_engine(config, groups, machine_precision("bf16", device))
    train(engine, config, STEPS)
    return [
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
        pytest.param((2, 1, 2), WHOLE, id="tensor 2 x data 2"),
        pytest.param((2, 1, 2), DROPOUT, id="with dropout", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), WHOLE, id="and pipeline 2", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), DROPOUT, id="and both", marks=pytest.mark.slow),
    ],
)
def test_replicated_weights_are_bitwise_equal_after_50_steps(
    layout: tuple[int, int, int], variant: Variant
) -> None:
    tensor, pipeline, data = layout
    row = Row(tensor=tensor, pipeline=pipeline, data=data, variant=variant)
    copies: dict[tuple[str, int], list[str]] = defaultdict(list)

    for rank in run_distributed(hashes_after_training, tensor * pipeline * data, config_of(row)):
        for name, share, digest in rank:
            copies[name, share].append(digest)

    for (name, share), digests in copies.items():
        assert len(digests) == (data if share >= 0 else data * tensor), name
        assert len(set(digests)) == 1, name
