"""A checkpoint whose content differs from the committed one is skipped."""

import os
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.checkpoint.folder import (
    CHECKPOINT_PARTS,
    MANIFEST_NAME,
    newest_checkpoint,
    verify_checkpoint,
)
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import json_bytes, sha256_of_json
from ernie_vilg.storage.json_files import read_json
from tests.checkpoint.checkpoint_runs import (
    restored,
    saved_run,
)


def manifest_without_own_hash(folder: Path, changes: dict[str, Any]) -> bytes:
    """Return a manifest with some changes and the matching hash."""
    content = {**read_json(folder / MANIFEST_NAME), **changes}
    content = {name: value for name, value in content.items() if value is not ...}
    del content["sha256"]
    return json_bytes({**content, "sha256": sha256_of_json(content)})


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"5", b"{}", b"{", b"\xff", b"[" * 100_000,
        b'{"format_version": ' + b"[" * 100_000, b'{"format_version": ' + b"9" * 5000 + b"}",
        b'{"format_version": 2, "step": "\\ud83d"}', b'{"format_version": [2]}',
    ],
    ids=lambda content: str(content[:30]),
)  # fmt: skip
def test_a_manifest_that_is_none_falls_back_to_the_checkpoint_before(
    tmp_path: Path, alone: None, content: bytes
) -> None:
    saved_run(tmp_path)
    (RunFolder(tmp_path).checkpoint(20) / MANIFEST_NAME).write_bytes(content)

    assert newest_checkpoint(tmp_path) == RunFolder(tmp_path).checkpoint(10)
    assert restored(tmp_path) == (10, 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": ...}, {"step": "20"}, {"step": [20]}, {"step": None}, {"identity": []},
        {"identity": ...}, {"files": {}}, {"files": ...}, {"files": [5]}, {"files": [{}]},
        {"files": [{"file": 5, "bytes": 1, "sha256": ""}]}, {"state": ...}, {"state": [1]},
        {"files": [{"file": "a", "bytes": "1", "sha256": ""}]}, {"layout": ...}, {"layout": 5},
        {"versions": ...},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_of_other_types_falls_back_though_its_hash_holds(
    tmp_path: Path, alone: None, changes: dict[str, Any]
) -> None:
    saved_run(tmp_path)
    folder = RunFolder(tmp_path).checkpoint(20)
    (folder / MANIFEST_NAME).write_bytes(manifest_without_own_hash(folder, changes))

    # Programs that read a run choose the same checkpoint as its next start.
    assert newest_checkpoint(tmp_path, CHECKPOINT_PARTS) == RunFolder(tmp_path).checkpoint(10)
    assert restored(tmp_path) == (10, 10)


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(lambda path: path.symlink_to("/etc"), id="a linked folder"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="a dangling link"),
        pytest.param(os.mkfifo, id="a pipe"),
    ],
)
def test_a_special_file_is_a_file_too_many(tmp_path: Path, alone: None, plant: Any) -> None:
    saved_run(tmp_path, steps=(0, 10))
    plant(RunFolder(tmp_path).checkpoint(10) / "state" / "planted")

    problem = verify_checkpoint(RunFolder(tmp_path).checkpoint(10))

    assert problem is not None
    assert problem.startswith("state/planted is not in the manifest")
    assert restored(tmp_path) == (0, 0)


def test_a_file_left_by_a_killed_writer_does_not_stop_the_next_start(
    tmp_path: Path, alone: None
) -> None:
    saved_run(tmp_path, steps=(0, 10))
    (tmp_path / "checkpoints" / ".writing-latest.json").write_text("{")

    assert restored(tmp_path) == (10, 10)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_reader_finds_a_checkpoint_that_a_kill_left_without_its_name(
    tmp_path: Path, alone: None
) -> None:
    saved_run(tmp_path, steps=(0, 20))
    folder = tmp_path / "checkpoints"
    RunFolder(tmp_path).checkpoint(20).rename(folder / ".replaced-step_00000020")

    # Programs that read a run choose the same checkpoint as its next start.
    assert newest_checkpoint(tmp_path, CHECKPOINT_PARTS) == folder / ".replaced-step_00000020"
    assert restored(tmp_path) == (20, 20)


def test_a_start_names_the_checkpoint_that_a_kill_left_unnamed(tmp_path: Path, alone: None) -> None:
    saved_run(tmp_path, steps=(0, 10, 20))
    (tmp_path / "checkpoints" / "latest.json").write_text('{"step": 10}')

    restored(tmp_path)

    assert '"step": 20' in (tmp_path / "checkpoints" / "latest.json").read_text()
