"""Measurements of a run are read as they were written."""

from dataclasses import fields
from pathlib import Path

import pytest

from ernie_vilg.planning.forecast import Forecast
from ernie_vilg.planning.history import (
    RunRecord,
    read_record,
    write_plan,
    write_record,
)
from ernie_vilg.planning.memory import MemoryEstimate
from ernie_vilg.planning.step_time import StepTime
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.json_files import read_json

RECORD = RunRecord(
    hardware="cpu",
    world_size=2,
    settings={"precision": "float32"},
    peak_memory_bytes=123,
    seconds_per_step=0.5,
    parts={"forward": 0.2},
)


def test_a_record_comes_back(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)

    assert read_record(tmp_path) == RECORD


def test_a_run_without_a_record_has_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None


def test_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text('{"hardware": "cpu"}')

    with pytest.raises(ValueError, match="not of this version"):
        read_record(tmp_path)


def test_a_plan_says_the_bytes_of_each_stage_and_the_seconds(tmp_path: Path) -> None:
    estimate = MemoryEstimate(
        weights=1,
        gradients=2,
        optimizer=3,
        activations=4,
        workspace=5,
        logits=6,
        fragmentation=7,
        host=8,
    )
    step = StepTime(**{each.name: 0.5 for each in fields(StepTime)})
    write_plan(tmp_path, 4, Forecast(memory=[estimate, estimate], step=step, excess=None))

    plan = read_json(RunFolder(tmp_path).plan)

    assert plan["world_size"] == 4
    assert [stage["total"] for stage in plan["memory_bytes"]] == [28, 28]
    assert plan["seconds_per_step"] == sum(plan["parts"].values()) == step.total
