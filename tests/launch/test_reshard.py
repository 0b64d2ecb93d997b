"""The program that consolidates a checkpoint, and its files in the run folder."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_vilg.checkpoint.consolidated import consolidate, discard_outdated
from ernie_vilg.checkpoint.folder import (
    CHECKPOINT_PARTS,
    read_checkpoint_manifest,
    verify_checkpoint,
    write_checkpoint_manifest,
)
from ernie_vilg.parallel.state.whole_state import parameter_shapes
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import writing_path
from ernie_vilg.storage.locks import locked
from launch.support.composition import compose_program
from launch.support.program import CONF_FOLDER
from tests.distributed import run_distributed
from tests.parallel.resharding import SMALL, STEPS_TAKEN, Hop, take_hops


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with one checkpoint, whose name looks like a glob pattern."""
    folder = tmp_path_factory.mktemp("runs")
    hop = Hop(name="run[1]+ *", ema_decay=0.0)
    run_distributed(take_hops, 1, str(folder), [hop])
    return folder / hop.name


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run folder for one test."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.distributed
def test_program_consolidates_the_newest_checkpoint(run_dir: Path) -> None:
    program = str(CONF_FOLDER.parent / "launch/reshard.py")
    # Hydra keeps quotes in a value.
    word = f"run='{run_dir}'"

    done = subprocess.run(
        [sys.executable, program, word], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    made = RunFolder(run_dir).consolidated_checkpoint(STEPS_TAKEN)
    assert done.stdout.splitlines()[-1] == f"{made}: made, step {STEPS_TAKEN}, 1 MB"
    assert "merge parameters" in done.stderr
    assert verify_checkpoint(made) is None
    assert sorted(path.name for path in made.parent.iterdir()) == [made.name]
    assert len(list((made / "state").iterdir())) == len(parameter_shapes(SMALL))


@pytest.mark.distributed
def test_what_is_there_and_whole_is_used_again(run_dir: Path) -> None:
    first, first_is_new = consolidate(run_dir, None, num_workers=1)
    before = files_of(first.folder)

    again, again_is_new = consolidate(run_dir, STEPS_TAKEN, num_workers=1)

    assert (first_is_new, again_is_new) == (True, False)
    assert files_of(again.folder) == before


@pytest.mark.slow  # each of the processes imports DeepSpeed
@pytest.mark.distributed
def test_several_processes_write_what_one_does(run_dir: Path) -> None:
    one = files_of(consolidate(run_dir, None, num_workers=1)[0].folder)
    shutil.rmtree(RunFolder(run_dir).consolidated_checkpoints)

    several = files_of(consolidate(run_dir, None, num_workers=2)[0].folder)

    assert several == one


def flip_a_bit(folder: Path) -> None:
    file = max(folder.rglob("*.pt"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    next(folder.rglob("*.pt")).unlink()


def belong_to_another(made: Path) -> None:
    """Save the checkpoint once more, with the same state."""
    folder = RunFolder(made.parent.parent).checkpoint(STEPS_TAKEN)
    manifest = read_checkpoint_manifest(folder)
    write_checkpoint_manifest(
        folder,
        step=STEPS_TAKEN,
        identity=manifest["identity"],
        files=manifest["files"],
        about={**{part: manifest[part] for part in CHECKPOINT_PARTS}, "state": {"saved": "again"}},
    )


@pytest.mark.distributed
@pytest.mark.parametrize("damage", [flip_a_bit, lose_a_file, belong_to_another])
def test_what_is_damaged_or_of_another_checkpoint_is_recreated(
    run_dir: Path, damage: Callable[[Path], None]
) -> None:
    made = consolidate(run_dir, None, num_workers=1)[0].folder
    whole = files_of(made / "state")
    damage(made)

    _, is_new = consolidate(run_dir, None, num_workers=1)

    assert is_new
    assert files_of(made / "state") == whole
    assert verify_checkpoint(made) is None


@pytest.mark.distributed
def test_without_room_nothing_is_left_and_both_sizes_are_named(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run_dir)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)

    with pytest.raises(
        ValueError, match=r"needs \d{6,} bytes beside the checkpoints, 1000 are free"
    ):
        consolidate(run_dir, None, num_workers=1)

    assert list((RunFolder(run_dir).consolidated_checkpoints).iterdir()) == []


@pytest.mark.distributed
def test_what_a_killed_process_left_does_not_matter(run_dir: Path) -> None:
    leftover = writing_path(RunFolder(run_dir).consolidated_checkpoint(STEPS_TAKEN)) / "state"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"half")

    made = consolidate(run_dir, None, num_workers=1)[0].folder

    assert list(made.parent.iterdir()) == [made]
    assert verify_checkpoint(made) is None


@pytest.mark.distributed
def test_a_damaged_checkpoint_is_never_read(run_dir: Path) -> None:
    flip_a_bit(RunFolder(run_dir).checkpoint(STEPS_TAKEN))

    with pytest.raises(
        ValueError, match=r"is damaged .* differs from its SHA-256.*: choose another"
    ):
        consolidate(run_dir, STEPS_TAKEN, num_workers=1)
    with pytest.raises(ValueError, match="no checkpoint that verifies"):
        consolidate(run_dir, None, num_workers=1)

    assert not (RunFolder(run_dir).consolidated_checkpoints).exists()


@pytest.mark.distributed
def test_a_step_without_checkpoint_is_refused_with_those_there_are(run_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"step=7: .* choose one of \[2\]"):
        consolidate(run_dir, 7, num_workers=1)


def test_what_is_older_than_a_later_checkpoint_goes(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        RunFolder(tmp_path).consolidated_checkpoint(step).mkdir(parents=True)

    discard_outdated(tmp_path, 6)

    assert list((RunFolder(tmp_path).consolidated_checkpoints).iterdir()) == [
        RunFolder(tmp_path).consolidated_checkpoint(6)
    ]


@pytest.mark.distributed
def test_one_process_at_a_time_consolidates(run_dir: Path) -> None:
    folder = RunFolder(run_dir).consolidated_checkpoints
    folder.mkdir()

    with locked(folder), pytest.raises(ValueError, match="another process consolidates"):
        consolidate(run_dir, None, num_workers=1)

    assert consolidate(run_dir, None, num_workers=1)[1]


def test_nothing_is_removed_while_another_process_consolidates(tmp_path: Path) -> None:
    older = RunFolder(tmp_path).consolidated_checkpoint(2)
    older.mkdir(parents=True)

    with locked(older.parent):
        discard_outdated(tmp_path, 6)
    assert older.exists()

    discard_outdated(tmp_path, 6)
    assert not older.exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("step=0", "step=0: must be at least 1, or null"),
        ("num_workers=-1", "num_workers=-1: must be at least 0 and at most 256"),
        ("stpe=1", "stpe"),
    ],
)
def test_wrong_setting_is_refused(word: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        compose_program("reshard", ["run=r", word])
