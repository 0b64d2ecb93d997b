"""A run records the medians of its log lines and the memory of its worst rank."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ernie_vilg.planning.history import read_record
from ernie_vilg.training import measured
from ernie_vilg.training.measured import Measured
from tests.training.runs import tiny_run


def of_run(folder: Path, monkeypatch: pytest.MonkeyPatch, rank: int = 0) -> Measured:
    groups = SimpleNamespace(rank=rank, world_size=2, device=torch.device("cpu"))
    engine: Any = SimpleNamespace(groups=groups, settings=SimpleNamespace(precision=torch.float32))
    monkeypatch.setattr(measured, "gather_everywhere", lambda _: [5.0, 7.0])
    return Measured(tiny_run(folder, steps=2), engine)


@pytest.mark.parametrize(
    ("first", "median"),
    [
        pytest.param({"first_step_seconds": 90.0}, 2.0, id="the first step alone"),
        pytest.param({"first_step_seconds": 99.0}, 2.5, id="a line that leaves it out"),
    ],
)
def test_the_record_has_medians_without_the_first_step(
    first: dict[str, float], median: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = of_run(tmp_path, monkeypatch)
    for seconds in (90.0, 1.0, 3.0, 2.0):
        run.add({"seconds_per_step": seconds, "forward_seconds_per_step": seconds / 2, **first})
        first = {}
    run.write()

    record = read_record(tmp_path / "run")

    assert record is not None
    assert (record.hardware, record.world_size, record.peak_memory_bytes) == ("cpu", 2, 7)
    assert (record.seconds_per_step, record.parts) == (median, {"forward": median / 2})
    assert record.settings["precision"] == "float32"


def test_the_first_step_counts_while_it_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = of_run(tmp_path, monkeypatch)
    run.add({"seconds_per_step": 90.0, "first_step_seconds": 90.0})
    run.write()

    record = read_record(tmp_path / "run")

    assert record is not None
    assert record.seconds_per_step == 90.0


@pytest.mark.parametrize(("rank", "lines"), [(1, 1), (0, 0)], ids=["another rank", "no line yet"])
def test_nothing_is_written_by(
    rank: int, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = of_run(tmp_path, monkeypatch, rank)
    for _ in range(lines):
        run.add({"seconds_per_step": 1.0})
    run.write()

    assert read_record(tmp_path / "run") is None
