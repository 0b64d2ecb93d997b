"""TensorBoard's files hold what the metrics file holds, and no abandoned step."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.errors import InputError
from ernie_vilg.tracking.tracker import RunTracker, check_trackers
from ernie_vilg.tracking.values import figures_of
from tests.tokenizer_training.tokenizer_run import ALONE, run, tiny_config, write_shards
from tests.tracking.wandb_file import logged_history
from tests.training.runs import tiny_run

_OF_WANDB = ("_step", "_timestamp", "_runtime", "_wandb")


def config_with(folder: Path, **tracking: Any) -> PretrainConfig:
    (folder / "run").mkdir(exist_ok=True)
    settings = TrackingConfig(wandb_mode="disabled", **tracking)
    return replace(tiny_run(folder, steps=2), tracking=settings)


def events_of(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    return events.Reload()


def curve(run_dir: Path, name: str) -> dict[int, float]:
    """Return a scalar by step; a step that a curve has twice fails."""
    points = [(point.step, point.value) for point in events_of(run_dir).Scalars(name)]
    assert len(dict(points)) == len(points), f"{name} has a step twice: {points}"
    return dict(points)


@pytest.fixture
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("no_login")
def test_wandb_and_tensorboard_hold_the_figures_and_pictures_of_a_run(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    config = tiny_config(tmp_path / "shards", tmp_path / "run")
    tracking = TrackingConfig(wandb_mode="offline", tensorboard=True, finish_seconds=60.0)

    assert run(ALONE, replace(config, tracking=tracking)) == 0

    run_dir = tmp_path / "run"
    written: dict[str, dict[int, float]] = {}
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name, value in figures_of(entry).items():
            written.setdefault(name, {})[entry["step"]] = value
    assert list(written["loss"]) == [1, 2, 3, 4]
    events = events_of(run_dir)
    assert set(events.Tags()["scalars"]) == set(written)
    for name, values in written.items():
        assert curve(run_dir, name) == pytest.approx(values, rel=1e-6), name  # float32
    sent: dict[str, dict[int, float]] = {}
    (path,) = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    for entry in logged_history(path):
        for name, value in entry.items():
            if name not in _OF_WANDB and not isinstance(value, dict):
                sent.setdefault(name, {})[entry["_step"]] = value
    assert sent == written
    (name,) = events.Tags()["images"]
    (picture,) = events.Images(name)
    (file,) = (run_dir / "reconstructions").glob("*.png")
    assert picture.encoded_image_string == file.read_bytes()
    assert picture.step == 4


def test_a_resumed_run_drops_the_steps_that_it_makes_again(tmp_path: Path) -> None:
    config = config_with(tmp_path, tensorboard=True)
    tracker = RunTracker(config, step=0)
    for step in (1, 2, 3, 4):
        tracker.log(step, {"loss": float(step)})
    tracker.close()

    tracker = RunTracker(config, step=2)
    tracker.log(3, {"loss": 30.0})
    tracker.close()

    assert curve(tmp_path / "run", "loss") == {1: 1.0, 2: 2.0, 3: 30.0}


def test_going_back_drops_the_later_steps(tmp_path: Path) -> None:
    tracker = RunTracker(config_with(tmp_path, tensorboard=True), step=0)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": float(step)})
    tracker.go_back(1)
    tracker.log(2, {"loss": 20.0})
    tracker.close()

    assert curve(tmp_path / "run", "loss") == {1: 1.0, 2: 20.0}


def test_turned_on_later_it_gets_the_earlier_lines(tmp_path: Path) -> None:
    tracker = RunTracker(config_with(tmp_path), step=0)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": float(step)})
    tracker.close()

    tracker = RunTracker(config_with(tmp_path, tensorboard=True), step=2)
    tracker.log(3, {"loss": 30.0})
    tracker.close()

    assert curve(tmp_path / "run", "loss") == {1: 1.0, 2: 2.0, 3: 30.0}


def test_values_that_are_no_number_are_left_out_and_captions_are_kept(tmp_path: Path) -> None:
    picture = tmp_path / "run" / "samples" / "step_00000001.png"
    tracker = RunTracker(config_with(tmp_path, tensorboard=True), step=0)
    picture.parent.mkdir()
    Image.new("RGB", (8, 4)).save(picture)
    tracker.log(1, {"loss": float("nan"), "rows": [1.0, None]})
    tracker.log_pictures(1, {"samples": picture}, {"samples": "红色\nblau"})
    tracker.close()

    events = events_of(tmp_path / "run")
    assert events.Tags()["scalars"] == ["rows/0"]
    (text,) = events.Tensors("samples/captions")
    assert text.tensor_proto.string_val[0].decode() == "红色  \nblau"
    (seen,) = events.Images("samples")
    assert (seen.width, seen.height) == (8, 4)


def test_a_folder_that_cannot_be_written_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_with(tmp_path, tensorboard=True)
    (tmp_path / "run" / "tensorboard").write_text("a file")

    tracker = RunTracker(config, step=0)
    tracker.log(1, {"loss": 1.0})
    tracker.close()

    assert "TensorBoard's files cannot be written" in caplog.text
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'


def test_a_missing_package_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_trackers(TrackingConfig())

    with pytest.raises(InputError, match=r"pip install 'ernie-vilg\[tensorboard\]'"):
        check_trackers(TrackingConfig(tensorboard=True))
