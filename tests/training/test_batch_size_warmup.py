"""A run whose global batch grows: its positions, its record, its resume, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_vilg.config.batch_sizes import BatchSizes, BatchSizeStageConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.records.ledger import read_step
from ernie_vilg.data.sequence.order import batch_size, first_position
from ernie_vilg.errors import InputError
from ernie_vilg.preparation.dry_run import dry_run
from ernie_vilg.runs.run_folder import RunFolder
from launch.drills.data_set import DataSet, make_data_set
from tests.data.token_shards import write_token_shards
from tests.distributed import run_distributed
from tests.training.runs import pretrain_here, run, run_on, tiny_run

WARMUP = (
    BatchSizeStageConfig(steps=2, global_batch_size=4),
    BatchSizeStageConfig(steps=1, global_batch_size=8),
)
SIZES = [4, 4, 8, 16, 16, 16]
"""Pairs of each step."""


def growing_run(folder: Path, **options: Any) -> PretrainConfig:
    config = tiny_run(folder, steps=len(SIZES), **options)
    layout = replace(config.parallelism, global_batch_size=16, batch_size_warmup=WARMUP)
    return replace(config, parallelism=layout)


def with_warmup(config: PretrainConfig, *stages: tuple[int, int]) -> PretrainConfig:
    """Return a run with another warm-up, of (steps, size)."""
    warmup = tuple(BatchSizeStageConfig(steps=n, global_batch_size=size) for n, size in stages)
    return replace(config, parallelism=replace(config.parallelism, batch_size_warmup=warmup))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"))


def test_steps_follow_one_another_without_gap_or_overlap() -> None:
    sizes = BatchSizes(full=16, warmup=WARMUP)

    steps = range(1, len(SIZES) + 1)

    assert [batch_size(step, sizes) for step in steps] == SIZES
    assert [first_position(step, sizes) for step in steps] == [0, 4, 8, 16, 32, 48]


@pytest.mark.distributed
def test_killed_within_the_warmup_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    for name in ("killed", "whole"):
        write_token_shards(tmp_path / name / "shards", [9, 7, 12])
    whole, killed = (
        growing_run(tmp_path / name, pipeline_parallel_size=2) for name in ("whole", "killed")
    )

    _, reference = run_distributed(run, 2, whole, torch.float32)[0]
    run_distributed(run, 2, killed, torch.float32, 3)
    first_step, resumed = run_distributed(run, 2, killed, torch.float32)[0]

    assert first_step == 2  # with another number of passes than the steps after it
    assert resumed == {step: reference[step] for step in (3, 4, 5, 6)}


@pytest.mark.distributed
def test_the_run_says_which_pairs_each_step_had_and_refuses_another_past(
    tmp_path: Path, data: DataSet
) -> None:
    config = run_on(growing_run(tmp_path, save_every=3), data)
    half = replace(config, training=replace(config.training, steps=3))

    assert run_distributed(pretrain_here, 1, half) == [0]
    longer_third = with_warmup(config, (2, 4), (2, 8))
    with pytest.raises(AssertionError, match="batch_size_warmup"):
        run_distributed(pretrain_here, 1, with_warmup(config, (1, 4), (2, 8)))
    assert run_distributed(pretrain_here, 1, longer_third) == [0]  # the future is free

    folder = RunFolder(Path(config.run_dir))
    records = [read_step(folder.ledger, step).record for step in range(1, 7)]
    sizes = [4, 4, 8, 8, 16, 16]
    assert [record.num_positions for record in records] == sizes
    assert [record.first_position for record in records] == [0, 4, 8, 16, 24, 40]
    lines = [json.loads(line) for line in folder.metrics.read_text("utf-8").splitlines()]
    assert [line["global_batch_size"] for line in lines] == sizes
    assert [line["data_position"] for line in lines] == [4, 8, 16, 24, 40, 56]
    for line in lines:
        seconds = line["seconds_per_step"]
        assert line["pairs_per_second"] == pytest.approx(line["global_batch_size"] / seconds)


def test_the_dry_run_counts_the_pairs_of_the_warmup(tmp_path: Path, data: DataSet) -> None:
    text = dry_run(run_on(growing_run(tmp_path), data), world_size=2)

    assert "batch-size warm-up" in text
    assert "steps of so many pairs: 2 of 4, 1 of 8" in text
    assert f"6 steps, {sum(SIZES)} pairs" in text
    assert f"the run draws {sum(SIZES)}," in text


@pytest.mark.parametrize(
    ("stages", "world_size", "words"),
    [
        pytest.param(
            [(1, 8), (1, 4)], 1, "sizes 8, 4, before .*global_batch_size=16", id="shrinks"
        ),
        pytest.param([(1, 16)], 1, "every size must be above the one before it", id="full size"),
        pytest.param(
            [(1, 4), (1, 6)],
            2,
            r"batch_size_warmup\[1\].global_batch_size=6 is no multiple of .*"
            r"set parallelism.batch_size_warmup\[1\].global_batch_size=4 or 8",
            id="no multiple",
        ),
    ],
)
def test_wrong_stages_are_refused_before_a_device_is_touched(
    tmp_path: Path, stages: list[tuple[int, int]], world_size: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        with_warmup(growing_run(tmp_path), *stages).parallelism.num_micro_batches(world_size)
