"""One training sequence, however many replicas and worker processes read it."""

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.storage.shard_manifest import Manifest, read_manifest
from tests.data.token_shards import sequence_of, write_token_shards

MODEL = ModelConfig(
    hidden_size=8,
    num_layers=1,
    num_heads=1,
    text_vocab_size=128,
    text_length=3,
    codebook_size=128,
    image_grid_size=2,
)
SIZES = [9, 11, 5, 23, 8, 16]
NUM_SAMPLES = sum(SIZES)
GLOBAL_BATCH = 24
STEPS_PER_EPOCH = NUM_SAMPLES // GLOBAL_BATCH
REPLICAS = [1, 2, 3, 4, 8]

assert NUM_SAMPLES % GLOBAL_BATCH == 0


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("shards")
    return folder, write_token_shards(folder, SIZES)


def steps_of(
    shards: tuple[Path, Manifest], first: int, last: int, *, replicas: int, workers: int = 0
) -> list[list[int]]:
    """Return the samples' numbers in each step after the `first` ones, replica after replica."""
    folder, manifest = shards
    sequence = sequence_of(
        folder, manifest, MODEL, seed=3, loader=LoaderConfig(num_workers=workers)
    )
    seen: list[list[int]] = [[] for _ in range(first, last)]
    for rank in range(replicas):
        replica = ReplicaSlice(
            batch_sizes=BatchSizes(full=GLOBAL_BATCH), data_rank=rank, data_size=replicas
        )
        with closing(StepSamples(sequence, replica)) as batches:
            for step, samples in enumerate(seen, start=first + 1):
                samples += batches.at(step).content.codes[:, 0].tolist()
    return seen


@pytest.fixture(scope="module")
def uninterrupted(shards: tuple[Path, Manifest]) -> list[list[int]]:
    """The steps of two epochs as one process reads them."""
    return steps_of(shards, 0, 2 * STEPS_PER_EPOCH, replicas=1)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("replicas", REPLICAS)
def test_every_layout_reads_the_same_global_batches(
    shards: tuple[Path, Manifest], uninterrupted: list[list[int]], replicas: int, workers: int
) -> None:
    steps = 2 * STEPS_PER_EPOCH

    assert steps_of(shards, 0, steps, replicas=replicas, workers=workers) == uninterrupted


def test_every_sample_once_per_epoch_in_another_order(uninterrupted: list[list[int]]) -> None:
    first = [sample for step in uninterrupted[:STEPS_PER_EPOCH] for sample in step]
    second = [sample for step in uninterrupted[STEPS_PER_EPOCH:] for sample in step]

    assert sorted(first) == sorted(second) == list(range(NUM_SAMPLES))
    assert first != second


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("first", range(1, 2 * STEPS_PER_EPOCH))
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    shards: tuple[Path, Manifest], uninterrupted: list[list[int]], first: int, replicas: int
) -> None:
    steps = 2 * STEPS_PER_EPOCH

    assert steps_of(shards, first, steps, replicas=replicas) == uninterrupted[first:]


def test_a_resumed_run_may_change_its_workers_and_replicas(
    shards: tuple[Path, Manifest], uninterrupted: list[list[int]]
) -> None:
    before = steps_of(shards, 0, 3, replicas=2, workers=2)
    after = steps_of(shards, 3, 6, replicas=3, workers=1)

    assert before + after == uninterrupted[:6]


def test_steps_may_be_asked_for_in_any_order(
    shards: tuple[Path, Manifest], uninterrupted: list[list[int]]
) -> None:
    folder, manifest = shards
    replica = ReplicaSlice(batch_sizes=BatchSizes(full=GLOBAL_BATCH), data_rank=0, data_size=1)
    sequence = sequence_of(folder, manifest, MODEL, seed=3, loader=LoaderConfig(num_workers=2))

    with closing(StepSamples(sequence, replica)) as batches:
        for step in (4, 5, 1, 1, 2):
            assert batches.at(step).content.codes[:, 0].tolist() == uninterrupted[step - 1]


@settings(deadline=None)
@given(
    data_size=st.integers(1, 64),
    micro_batches=st.integers(1, 5),
    step=st.integers(1, 1 << 40),
)
def test_the_slices_of_a_step_are_its_positions_in_order(
    data_size: int, micro_batches: int, step: int
) -> None:
    size = data_size * micro_batches
    positions = [
        position
        for rank in range(data_size)
        for position in ReplicaSlice(
            batch_sizes=BatchSizes(full=size), data_rank=rank, data_size=data_size
        ).positions(step)
    ]

    assert positions == list(range((step - 1) * size, step * size))


def test_the_manifest_on_disk_gives_the_same_sequence(
    shards: tuple[Path, Manifest], uninterrupted: list[list[int]]
) -> None:
    folder, _ = shards

    assert steps_of((folder, read_manifest(folder, "token")), 0, 2, replicas=1) == uninterrupted[:2]


def test_a_cache_that_two_blocks_would_not_fit_in_is_refused(
    shards: tuple[Path, Manifest],
) -> None:
    _, manifest = shards
    num_bytes = sum(file.bytes for shard in manifest.shards for file in shard.files)
    loader = LoaderConfig(cache_dir="cache", cache_bytes=num_bytes - 1)

    with pytest.raises(ValueError, match=rf"cache_bytes={num_bytes - 1} with .* {num_bytes} bytes"):
        sequence_of(*shards, MODEL, loader=loader)
