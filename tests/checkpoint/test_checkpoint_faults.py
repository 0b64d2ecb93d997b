"""Committed checkpoints survive kills, full disks and damage; failed saves leave nothing."""

import logging
import os
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from ernie_vilg.checkpoint.checkpoints import CheckpointError, Checkpoints
from ernie_vilg.checkpoint.folder import (
    committed_checkpoints,
    newest_checkpoint,
    verify_checkpoint,
)
from ernie_vilg.config.launch import Launch
from ernie_vilg.parallel.layout.groups import start_processes
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import clear_leftovers, put_folder
from tests.checkpoint.checkpoint_runs import (
    AtPoint,
    FakeEngine,
    checkpoints_of,
    restored,
    save,
    saved_run,
)
from tests.distributed import one_process, run_distributed

LARGE = 1 << 17
"""Numbers per file: a checkpoint of 2 files takes a MiB."""


# --- Kills.

POINTS = [  # and whether the new checkpoint exists by then
    ("save: before data", False),
    ("save: after file state/weights_0.pt", False),
    ("save: after file state/moments_0.pt", False),
    ("save: before manifest", False),
    ("save: before rename", False),
    ("save: before pointer", True),
    ("save: after pointer", True),
]


def kill_at_every_point(launch: Launch, folder: Path, saves: tuple[int, ...], last: int) -> None:
    """Save, and die in the last save, once per point, each time in another process."""
    for number, (point, _) in enumerate(POINTS):
        child = os.fork()
        if child == 0:
            with one_process():
                run_dir = folder / str(number)
                saved_run(run_dir, saves, asynchronous=True)
                dies = AtPoint(point, lambda: os.kill(os.getpid(), signal.SIGKILL))
                checkpoints = checkpoints_of(run_dir, phases=dies, asynchronous=True)
                engine: Any = FakeEngine()
                engine.state = 99
                checkpoints.save(engine, last)
                checkpoints.finish()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), point


@pytest.mark.distributed
def test_a_kill_in_a_save_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    """SIGKILL comes at every point of a save."""
    run_distributed(kill_at_every_point, 1, tmp_path, (0, 10), 20)

    with one_process():
        for number, (point, is_committed) in enumerate(POINTS):
            expected = (20, 99) if is_committed else (10, 10)
            assert restored(tmp_path / str(number)) == expected, point
            assert not list((tmp_path / str(number) / "checkpoints").glob(".*")), point


@pytest.mark.distributed
def test_a_kill_while_a_step_is_saved_again_leaves_one_of_both(tmp_path: Path) -> None:
    """Nothing is overwritten in place."""
    run_distributed(kill_at_every_point, 1, tmp_path, (0, 10, 20), 20)

    with one_process():
        for number, (point, is_committed) in enumerate(POINTS):
            expected = (20, 99) if is_committed else (20, 20)
            assert restored(tmp_path / str(number)) == expected, point


def test_a_kill_between_the_renames_of_a_replacement_is_repaired(
    tmp_path: Path, alone: None
) -> None:
    saved_run(tmp_path, steps=(0, 20))
    folder = tmp_path / "checkpoints"
    shutil.copytree(RunFolder(tmp_path).checkpoint(20), folder / ".writing-step_00000020")
    RunFolder(tmp_path).checkpoint(20).rename(folder / ".replaced-step_00000020")

    assert restored(tmp_path) == (20, 20)
    assert not list(folder.glob(".*"))


def test_an_old_one_left_beside_its_replacement_goes(tmp_path: Path, alone: None) -> None:
    saved_run(tmp_path, steps=(0, 20))
    folder = tmp_path / "checkpoints"
    shutil.copytree(RunFolder(tmp_path).checkpoint(20), folder / ".replaced-step_00000020")

    clear_leftovers(folder)

    assert not list(folder.glob(".*"))


def test_a_replacement_that_cannot_be_renamed_puts_the_old_one_back(tmp_path: Path) -> None:
    final = tmp_path / "step_00000020"
    final.mkdir()

    with pytest.raises(FileNotFoundError):
        put_folder(tmp_path / ".writing-step_00000020", final)

    assert [path.name for path in tmp_path.iterdir()] == ["step_00000020"]


# --- Training continues while a checkpoint is written.


def test_the_snapshot_is_the_state_at_the_save(tmp_path: Path, alone: None) -> None:
    """Changes by training while the writer is slow do not reach the files."""
    go_on = threading.Event()
    checkpoints = checkpoints_of(
        tmp_path, asynchronous=True, phases=AtPoint("save: before data", lambda: wait_for(go_on))
    )
    engine: Any = FakeEngine()
    engine.state = 10

    checkpoints.save(engine, 10)
    assert checkpoints.is_writing
    assert committed_checkpoints(tmp_path) == []
    engine.state = 11  # in place, as an optimizer does
    go_on.set()
    checkpoints.finish()

    assert not checkpoints.is_writing
    assert restored(tmp_path) == (10, 10)


def wait_for(event: threading.Event) -> None:
    assert event.wait(timeout=60), "the test went on"


def test_training_is_blocked_by_the_copy_and_not_by_the_disk(tmp_path: Path, alone: None) -> None:
    """A slow disk does not lengthen the stall; benchmarks measure the duration."""
    slow = threading.Event()
    checkpoints = checkpoints_of(
        tmp_path, asynchronous=True, phases=AtPoint("save: before data", lambda: slow.wait(0.5))
    )

    save(checkpoints, 10)
    slow.wait(1.0)
    checkpoints.commit_written()

    report = checkpoints.last_save
    assert report is not None
    assert report.write_seconds >= 0.5 > report.stall_seconds
    assert report.snapshot_bytes == 2 * 8 * 4
    assert report.bytes > report.snapshot_bytes


def test_a_save_waits_for_the_one_before(tmp_path: Path, alone: None) -> None:
    checkpoints = checkpoints_of(tmp_path, asynchronous=True)

    for step in (10, 20, 30):
        save(checkpoints, step)
    checkpoints.finish()
    checkpoints.commit_written()  # nothing is left

    assert checkpoints.last_step == 30
    assert restored(tmp_path) == (30, 30)


# --- Disks.


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Mount a file system of a given size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_save_without_room_is_refused_and_the_old_one_stays(
    tmp_path: Path, alone: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The message names the needed and the free bytes; the policy ends the run."""
    with small_disk(tmp_path / "disk", 2_600_000) as run_dir:
        checkpoints = checkpoints_of(run_dir, max_failed_saves=1)
        for step in (0, 10, 20):
            save(checkpoints, step, size=LARGE)

        assert "step 20 could not be saved: the disk is full (1,048,576 bytes are" in caplog.text
        assert "are free); the checkpoint of step 10 stands" in caplog.text
        with pytest.raises(CheckpointError, match="2 saves in a row have failed"):
            save(checkpoints, 30, size=LARGE)
        with pytest.raises(CheckpointError, match="the checkpoint of step 10 stands"):
            checkpoints.finish()
        assert newest_checkpoint(run_dir) == RunFolder(run_dir).checkpoint(10)
        assert leftovers(run_dir) == []


def test_a_run_without_room_for_its_first_checkpoint_does_not_start(
    tmp_path: Path, alone: None
) -> None:
    engine: Any = FakeEngine(size=LARGE)
    with small_disk(tmp_path / "disk", 500_000) as run_dir:
        checkpoints = checkpoints_of(run_dir)

        with pytest.raises(CheckpointError, match="free some disk space and start again"):
            checkpoints.restore(engine)


def test_a_disk_that_fills_during_a_save_leaves_nothing_of_it(
    tmp_path: Path, alone: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Training continues, and a later save succeeds once there is room."""
    with small_disk(tmp_path / "disk", 3_500_000) as run_dir:
        filling = run_dir / "something else"
        checkpoints = checkpoints_of(
            run_dir,
            max_failed_saves=1,
            phases=AtPoint("save: after file", lambda: fill(filling)),
        )
        save(checkpoints, 10, size=LARGE)

        assert "rank 0: [Errno 28] No space left on device: 'state/moments_0.pt'" in caplog.text
        assert "bytes are needed" in caplog.text
        assert leftovers(run_dir) == committed_checkpoints(run_dir) == []

        filling.unlink()
        save(checkpoints, 20, size=LARGE)
        checkpoints.finish()
        assert verify_checkpoint(RunFolder(run_dir).checkpoint(20)) is None


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            return


def leftovers(run_dir: Path) -> list[Path]:
    return list((run_dir / "checkpoints").glob(".*"))


def test_a_disk_that_gives_back_something_else_fails_the_save(
    tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved_run(tmp_path)
    monkeypatch.setattr(
        "ernie_vilg.checkpoint.writer.sha256_of_file", lambda path: "of another content"
    )
    save(checkpoints, 30)

    assert "what was read back is not what was written" in caplog.text
    assert committed_checkpoints(tmp_path)[0] == RunFolder(tmp_path).checkpoint(20)


def test_what_cannot_be_pickled_fails_the_save_and_not_the_thread_alone(
    tmp_path: Path, alone: None, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved_run(tmp_path)
    engine: Any = FakeEngine()
    engine.save = lambda snapshot: snapshot.take("state", {"function": lambda: None})

    checkpoints.save(engine, 30)

    assert "the checkpoint of step 30 could not be saved: rank 0: " in caplog.text
    assert leftovers(tmp_path) == []


# --- Retention.


def test_there_is_a_verified_checkpoint_at_all_times(tmp_path: Path, alone: None) -> None:
    """Two checkpoints are kept, and one of them is damaged now and then."""
    checkpoints = saved_run(tmp_path)
    is_over, moments_without = threading.Event(), []

    def poll() -> None:
        while not is_over.is_set():
            # A folder may be removed between the listing and the read.
            if not any(newest_checkpoint(tmp_path) for _ in range(3)):
                moments_without.append(committed_checkpoints(tmp_path))

    watcher = threading.Thread(target=poll)
    watcher.start()
    logging.disable(logging.WARNING)
    try:
        for step in range(30, 130, 10):
            if step % 20 == 0:
                damaged = committed_checkpoints(tmp_path)[step % 40 == 0]
                (damaged / "state/weights_0.pt").write_text("damaged")
            save(checkpoints, step)
    finally:
        is_over.set()
        watcher.join()
        logging.disable(logging.NOTSET)
    checkpoints.finish()

    assert moments_without == []
    assert len(committed_checkpoints(tmp_path)) == 2


# --- Several ranks.


def save_with_one_bad_rank(launch: Launch, run_dir: Path) -> list[Any]:
    """Return the outcome of each save and of a restart, on one of two ranks."""
    start_processes(launch, timeout_seconds=60)
    engine: Any = FakeEngine(launch.rank, launch.world_size)
    checkpoints = checkpoints_of(run_dir, max_failed_saves=1)
    outcomes: list[Any] = [checkpoints.restore(engine)]
    for step, limit in ((10, None), (20, 100), (30, None), (40, 100), (50, 100)):
        engine.state = step
        with files_up_to(limit if launch.rank == 1 else None):
            outcomes.append(_outcome(checkpoints, engine, step))
    dist.barrier()
    if launch.rank == 0:
        (RunFolder(run_dir).checkpoint(30) / "state/moments_1.pt").write_text("damaged")
    dist.barrier()
    again: Any = FakeEngine(launch.rank, launch.world_size)
    return [*outcomes, checkpoints_of(run_dir).restore(again), again.state]


def _outcome(checkpoints: Checkpoints, engine: Any, step: int) -> Any:
    try:
        checkpoints.save(engine, step)
    except CheckpointError as error:
        return str(error).partition(" (")[0]
    return checkpoints.last_step


@contextmanager
def files_up_to(num_bytes: int | None) -> Iterator[None]:
    """Limit the size of this process's files, as a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if num_bytes is None else num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.distributed
def test_all_ranks_take_the_same_side(tmp_path: Path) -> None:
    """One rank that cannot write fails the save of all; one bad file, the restart of all."""
    outcomes = run_distributed(save_with_one_bad_rank, 2, tmp_path)

    too_large = (
        "the checkpoint of step 50 could not be saved: rank 1: [Errno 27] File too large: "
        "'state/weights_1.pt'"
    )
    assert outcomes[0] == outcomes[1] == [0, 10, 10, 30, 30, too_large, 10, 10]
    assert leftovers(tmp_path) == []
