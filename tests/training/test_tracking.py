"""Metrics are always written; W&B gets only what it may, and never stops a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import wandb

from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.training.tracking import (
    RunTracker,
    keep_metrics_until,
    logged_settings,
    wandb_mode,
)
from tests.training.runs import tiny_run

METRICS = {"loss": 2.5}


@pytest.fixture
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)


def config_with(folder: Path, mode: str) -> Any:
    from dataclasses import replace

    (folder / "run").mkdir(exist_ok=True)
    return replace(tiny_run(folder, steps=2), tracking=TrackingConfig(wandb_mode=mode))


def test_metrics_file_holds_a_line_per_call(tmp_path: Path) -> None:
    tracker = RunTracker(config_with(tmp_path, "disabled"), step=0)
    tracker.log(10, METRICS)
    tracker.log(20, METRICS)
    tracker.close()

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "loss": 2.5},
        {"step": 20, "loss": 2.5},
    ]


def test_rolled_back_steps_and_a_cut_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"step": 4')

    keep_metrics_until(path, 20)

    assert path.read_text() == '{"step": 10}\n{"step": 20}\n'


def test_an_offline_run_is_a_real_wandb_run(tmp_path: Path, no_login: None) -> None:
    tracker = RunTracker(config_with(tmp_path, "auto"), step=0)
    tracker.log(10, METRICS)
    tracker.close()
    wandb.teardown()  # as at a process's end: finish() returns before the file is whole

    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    assert b"loss" in files[0].read_bytes()


def test_a_failing_wandb_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**settings: Any) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(wandb, "init", fail)
    tracker = RunTracker(config_with(tmp_path, "online"), step=0)
    tracker.log(10, METRICS)
    tracker.close()

    assert "goes on without it: no network" in caplog.text
    assert (tmp_path / "run" / "metrics.jsonl").read_text()


def test_no_path_is_sent(tmp_path: Path) -> None:
    settings = logged_settings(tiny_run(tmp_path, steps=2))

    assert str(tmp_path) not in json.dumps(settings)
    assert settings["model"]["hidden_size"] == 16


@pytest.mark.parametrize(
    ("key", "mode"),
    [pytest.param("", "offline", id="no login"), pytest.param("x", "online", id="key")],
)
def test_auto_is_online_only_with_a_login(
    no_login: None, monkeypatch: pytest.MonkeyPatch, key: str, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)

    assert wandb_mode(TrackingConfig()) == mode
