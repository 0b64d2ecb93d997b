"""One run at a time holds a run folder, even where clocks are wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.config.launch import Launch
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.run_lock import RunLock

ALONE = Launch(rank=0, local_rank=0, world_size=1)

_HOLDS_THE_LOCK = """
import sys, time
from pathlib import Path
from ernie_vilg.config.launch import Launch
from ernie_vilg.runs.run_lock import RunLock
with RunLock(Path(sys.argv[1]), Launch(rank=0, local_rank=0, world_size=1), beat_seconds=0.05):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def lock_of(run_dir: Path, launch: Launch = ALONE, **intervals: float) -> RunLock:
    return RunLock(run_dir, launch, **{"beat_seconds": 0.05, "stale_seconds": 1.0, **intervals})


@contextmanager
def other_process(run_dir: Path, seconds: float = 60.0) -> Iterator["subprocess.Popen[str]"]:
    """Hold the lock in another process of this machine."""
    words = [sys.executable, "-c", _HOLDS_THE_LOCK, str(run_dir), str(seconds)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def other_machine(run_dir: Path, *, beats: bool, **changes: Any) -> Iterator[None]:
    """Hold the lock as a run on another machine does, alive or dead."""
    content: dict[str, Any] = {
        "launch_id": "theirs",
        "host": "node17",
        "machine": "another boot",
        "process_id": os.getpid(),  # it runs here, which must not count
        "start_ticks": 1,
        "job": "4242",
        "job_restarts": 0,
        "beat": 1,
        **changes,
    }
    path = RunFolder(run_dir).lock
    path.write_text(json.dumps(content))
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            content["beat"] += 1
            temporary = path.with_name("theirs")
            temporary.write_text(json.dumps(content))
            temporary.replace(path)

    thread = threading.Thread(target=beat)
    if beats:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if beats:
            thread.join()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_run_of_this_machine_is_refused_at_once_and_told_by_whom(tmp_path: Path) -> None:
    with other_process(tmp_path) as holder:
        started = time.monotonic()
        with pytest.raises(ValueError, match=f"is in use by process {holder.pid} on .*STOP"):
            lock_of(tmp_path, stale_seconds=30.0).__enter__()
        assert time.monotonic() - started < 25

        beat = json.loads(RunFolder(tmp_path).lock.read_text())["beat"]
        wait_until(lambda: json.loads(RunFolder(tmp_path).lock.read_text())["beat"] > beat)


def test_a_killed_run_of_this_machine_is_taken_over_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with other_process(tmp_path) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        started = time.monotonic()

        with lock_of(tmp_path, stale_seconds=30.0):
            assert time.monotonic() - started < 25

    assert f"process {holder.pid} on" in caplog.text
    assert "taking over" in caplog.text


def test_a_stopped_process_still_holds_the_lock(tmp_path: Path) -> None:
    with other_process(tmp_path) as holder:
        os.kill(holder.pid, signal.SIGSTOP)
        with pytest.raises(ValueError, match="is in use"):
            lock_of(tmp_path).__enter__()
        os.kill(holder.pid, signal.SIGCONT)


def test_a_run_that_lives_on_another_machine_is_refused_at_its_first_beat(tmp_path: Path) -> None:
    with (
        other_machine(tmp_path, beats=True),
        pytest.raises(ValueError, match=r"is in use by process .* on node17, Slurm job 4242"),
    ):
        lock_of(tmp_path, stale_seconds=30.0).__enter__()

    assert json.loads(RunFolder(tmp_path).lock.read_text())["launch_id"] == "theirs"


def test_a_run_that_died_on_another_machine_is_taken_over_when_its_beat_stood_still(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with other_machine(tmp_path, beats=False):
        started = time.monotonic()
        with lock_of(tmp_path, stale_seconds=1.0):
            assert time.monotonic() - started >= 1.0

    assert "node17" in caplog.text


@pytest.mark.parametrize("hours", [-1.0, 1.0], ids=["an hour back", "an hour ahead"])
def test_the_time_of_day_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """Neither a machine's skewed clock nor the time stamp of a file counts."""
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + 3600 * hours)
    with other_machine(tmp_path, beats=False):
        os.utime(RunFolder(tmp_path).lock, (true_time() - 3600 * hours,) * 2)
        started = time.monotonic()
        with lock_of(tmp_path, stale_seconds=0.5):
            assert time.monotonic() - started >= 0.5
    with other_machine(tmp_path, beats=True), pytest.raises(ValueError, match="is in use"):
        lock_of(tmp_path, stale_seconds=30.0).__enter__()


def test_a_job_that_slurm_begins_anew_need_not_wait_for_itself(tmp_path: Path) -> None:
    again = Launch(rank=0, local_rank=0, world_size=1, job="4242", job_restarts=1)
    with other_machine(tmp_path, beats=False):
        started = time.monotonic()
        with lock_of(tmp_path, again, stale_seconds=30.0):
            assert time.monotonic() - started < 25


def test_a_second_step_of_the_same_job_is_refused(tmp_path: Path) -> None:
    beside = Launch(rank=0, local_rank=0, world_size=1, job="4242", job_restarts=0)
    with other_machine(tmp_path, beats=True), pytest.raises(ValueError, match="is in use"):
        lock_of(tmp_path, beside, stale_seconds=30.0).__enter__()


def test_of_many_starts_at_once_one_gets_the_folder_of_a_dead_run(tmp_path: Path) -> None:
    outcomes: list[str] = []
    is_over = threading.Event()

    def start() -> None:
        try:
            with lock_of(tmp_path):
                outcomes.append("held")
                is_over.wait(30)
        except ValueError:
            outcomes.append("refused")

    with other_machine(tmp_path, beats=False):
        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(outcomes) == 4)
        is_over.set()
        for thread in threads:
            thread.join()

    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_a_holder_that_was_taken_over_knows_it_and_leaves_the_lock_alone(tmp_path: Path) -> None:
    with lock_of(tmp_path) as lock:
        assert not lock.is_lost
        with other_machine(tmp_path, beats=False):
            wait_until(lambda: lock.is_lost)

    assert json.loads(RunFolder(tmp_path).lock.read_text())["launch_id"] == "theirs"


def test_the_end_of_a_run_frees_the_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with lock_of(tmp_path):
            assert RunFolder(tmp_path).lock.is_file()
    assert not RunFolder(tmp_path).lock.exists()


def test_only_the_leader_takes_part(tmp_path: Path) -> None:
    with lock_of(tmp_path), lock_of(tmp_path, Launch(rank=1, local_rank=1, world_size=2)) as other:
        assert not other.is_lost


@pytest.mark.parametrize("content", ["", "{", '{"pid": 3}'], ids=["empty", "cut", "other version"])
def test_an_unreadable_lock_is_watched_before_it_is_taken(tmp_path: Path, content: str) -> None:
    RunFolder(tmp_path).lock.write_text(content)
    started = time.monotonic()

    with lock_of(tmp_path, stale_seconds=0.5):
        assert time.monotonic() - started >= 0.5


def test_on_a_full_disk_the_holder_is_still_seen_to_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock_of(tmp_path):
        stamp = RunFolder(tmp_path).lock.stat().st_mtime_ns

        def refuse(path: Path, value: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("ernie_vilg.runs.run_lock.write_json", refuse)
        wait_until(lambda: RunFolder(tmp_path).lock.stat().st_mtime_ns > stamp)


def test_without_file_locks_the_last_to_write_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lock: Any, *arguments: Any, **more: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with lock_of(tmp_path), pytest.raises(ValueError, match="is in use"):
        lock_of(tmp_path).__enter__()


@pytest.mark.parametrize(
    "content", ["[]", "null", "[" * 100_000, '{"beat": 1}', '{"beat": "\\ud83d"}']
)
def test_a_damaged_lock_is_one_that_nobody_holds(tmp_path: Path, content: str) -> None:
    RunFolder(tmp_path).lock.write_text(content)

    with lock_of(tmp_path, stale_seconds=0.3):
        assert json.loads(RunFolder(tmp_path).lock.read_text())["process_id"] == os.getpid()
