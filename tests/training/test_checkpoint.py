"""A checkpoint exists when it is committed, and is used when it verifies."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from ernie_vilg.training.checkpoint import Checkpoints
from ernie_vilg.training.commit import (
    MANIFEST_NAME,
    checkpoint_path,
    committed_checkpoints,
    newest_checkpoint,
    verify_checkpoint,
)

IDENTITY = {"model": {"hidden_size": 16}, "layout": {"zero_stage": 1}}


@pytest.fixture(autouse=True)
def one_process() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class FakeEngine:
    """An engine whose state is one number in one file."""

    def __init__(self) -> None:
        self.groups = SimpleNamespace(rank=0, world_size=1)
        self.state = 0

    def save(self, folder: Path) -> None:
        (folder / "state").mkdir()
        (folder / "state" / "number").write_text(str(self.state))
        (folder / "other").write_text("other")

    def load(self, folder: Path) -> None:
        self.state = int((folder / "state" / "number").read_text())


def checkpoints_of(run_dir: Path, keep: int = 2, identity: Any = IDENTITY) -> Checkpoints:
    return Checkpoints(run_dir, keep, lambda step: identity, lambda step: {"position": step})


def saved_run(run_dir: Path, steps: tuple[int, ...] = (0, 10, 20)) -> Checkpoints:
    checkpoints, engine = checkpoints_of(run_dir), FakeEngine()
    for step in steps:
        engine.state = step
        checkpoints.save(engine, step)  # type: ignore[arg-type]
    return checkpoints


def restored(run_dir: Path, identity: Any = IDENTITY) -> tuple[int, int]:
    """Return the step that a new start resumes from, and the state it finds."""
    engine = FakeEngine()
    step = checkpoints_of(run_dir, identity=identity).restore(engine)  # type: ignore[arg-type]
    return step, engine.state


def test_an_empty_run_starts_at_zero_with_a_checkpoint(tmp_path: Path) -> None:
    assert restored(tmp_path) == (0, 0)
    assert verify_checkpoint(tmp_path / "checkpoints" / "step_00000000") is None


def test_the_newest_is_restored_and_old_ones_are_removed(tmp_path: Path) -> None:
    saved_run(tmp_path)

    assert restored(tmp_path) == (20, 20)
    assert [folder.name for folder in committed_checkpoints(tmp_path)] == [
        "step_00000020",
        "step_00000010",
    ]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = [
    pytest.param(lambda folder: flip_bit(folder / "state" / "number"), id="flipped bit"),
    pytest.param(lambda folder: (folder / "other").unlink(), id="missing file"),
    pytest.param(lambda folder: (folder / "other").write_text(""), id="truncated file"),
    pytest.param(lambda folder: (folder / MANIFEST_NAME).unlink(), id="no manifest"),
    pytest.param(lambda folder: (folder / MANIFEST_NAME).write_text("{"), id="bad manifest"),
    pytest.param(lambda folder: (folder / MANIFEST_NAME).write_text("[]"), id="other manifest"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: Any) -> None:
    saved_run(tmp_path)
    damage(checkpoint_path(tmp_path, 20))

    assert restored(tmp_path) == (10, 10)
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 10)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    checkpoints = saved_run(tmp_path)
    flip_bit(checkpoint_path(tmp_path, 20) / "other")

    checkpoints.save(FakeEngine(), 20)  # type: ignore[arg-type]

    assert verify_checkpoint(checkpoint_path(tmp_path, 20)) is None


def test_a_half_written_checkpoint_does_not_exist(tmp_path: Path) -> None:
    saved_run(tmp_path)
    checkpoint_path(tmp_path, 20).rename(tmp_path / "checkpoints" / ".writing-step_00000020")

    assert restored(tmp_path) == (10, 10)
    assert not list((tmp_path / "checkpoints").glob(".writing-*"))


def test_a_run_whose_checkpoints_are_all_bad_is_not_started_again(tmp_path: Path) -> None:
    saved_run(tmp_path)
    for step in (10, 20):
        flip_bit(checkpoint_path(tmp_path, step) / "other")

    with pytest.raises(ValueError, match="holds a run but no checkpoint of it that verifies"):
        restored(tmp_path)


def test_a_run_that_lost_its_checkpoints_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")

    with pytest.raises(ValueError, match="holds a run but no checkpoint of it that verifies"):
        restored(tmp_path)


def test_other_settings_are_listed_and_refused(tmp_path: Path) -> None:
    saved_run(tmp_path)

    with pytest.raises(
        ValueError, match=r"layout: \{'zero_stage': 1\} in the checkpoint, .*2.* now"
    ):
        restored(tmp_path, {**IDENTITY, "layout": {"zero_stage": 2}})


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    saved_run(tmp_path)

    manifest = json.loads((checkpoint_path(tmp_path, 20) / MANIFEST_NAME).read_text())

    assert [entry["file"] for entry in manifest["files"]] == ["other", "state/number"]
    assert manifest["step"] == 20
    assert manifest["identity"] == IDENTITY
