"""A run's metrics count damaged and quarantined samples, and report its first step apart."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.shard_manifest import read_manifest
from launch.drills.data_set import make_data_set
from tests.distributed import run_distributed
from tests.forensics.past_run import run_config
from tests.training.runs import pretrain_here


@pytest.mark.distributed
def test_damaged_and_quarantined_samples_are_logged(tmp_path: Path) -> None:
    data = make_data_set(tmp_path / "data")
    config = run_config(tmp_path / "run", data, damage="skip")
    config = replace(
        config,
        training=replace(config.training, steps=3, log_every=1),
        tracking=replace(config.tracking, wandb_mode="disabled"),
    )
    first, *_ = read_manifest(data.token_shards, "token").shards
    (data.token_shards / first.file).unlink()
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True)
    RunFolder(run_dir).quarantine.write_text('{"key": "00000015"}\n{"key": "00000022"}\n')

    run_distributed(pretrain_here, 2, config)

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["quarantined_samples"] for line in lines] == [2.0, 2.0, 2.0]
    # All shards are one block of the order: the damaged one is met in the first steps.
    assert lines[-1]["damaged_samples"] == first.samples
    start, *others = lines
    assert start["first_step_seconds"] == start["seconds_per_step"] < start["start_seconds"]
    assert not any("first_step_seconds" in line or "start_seconds" in line for line in others)
