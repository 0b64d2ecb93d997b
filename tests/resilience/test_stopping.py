"""Requests to stop are noted at once, obeyed once, and recorded."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.stopping import StoppingConfig
from ernie_vilg.parallel.layout.collectives import agree_max
from ernie_vilg.parallel.layout.groups import start_processes
from ernie_vilg.resilience import stopping as stopping_module
from ernie_vilg.resilience.stopping import Stopping, StopReason
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.system.processes import mark_process
from tests.distributed import run_distributed

LEADER = Launch(rank=0, local_rank=0, world_size=2, started=1000.0)
OTHER = replace(LEADER, rank=1, local_rank=1)


class Clock:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stopping(tmp_path: Path, clock: Clock) -> Iterator[Stopping]:
    with Stopping(StoppingConfig(), tmp_path, LEADER, clock=clock) as stopping:
        yield stopping


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGTERM, StopReason.TERMINATED),
        (signal.SIGINT, StopReason.INTERRUPTED),
        (signal.SIGUSR1, StopReason.USER_SIGNAL),
        (signal.SIGUSR2, StopReason.USER_SIGNAL),
    ],
    ids=["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"],
)
def test_a_signal_is_a_request_and_a_second_one_changes_nothing(
    stopping: Stopping, number: signal.Signals, reason: StopReason
) -> None:
    """Neither two SIGTERMs nor a Ctrl-C end the process in the middle of a step."""
    assert stopping.code() is StopReason.NONE
    assert not stopping.is_requested

    for _ in range(2):
        os.kill(os.getpid(), number)
        wait_until(lambda: stopping.is_requested)
        assert stopping.code() is reason


def test_signal_handlers_are_restored(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    with Stopping(StoppingConfig(), tmp_path, LEADER):
        assert signal.getsignal(signal.SIGTERM) != before[0]

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


_STUCK = """
import sys, time
from pathlib import Path
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.stopping import StoppingConfig
from ernie_vilg.resilience.stopping import Stopping
launch = Launch(rank=0, local_rank=0, world_size=1)
with Stopping(StoppingConfig(), Path(sys.argv[1]), launch):
    print("ready", flush=True)
    import hashlib
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # one call without an end, as a hung collective
"""


def test_the_third_ctrl_c_ends_a_process_that_is_stuck(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _STUCK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 128 + signal.SIGINT
        finally:
            process.kill()


def test_a_press_that_a_launcher_passes_on_counts_once(stopping: Stopping, clock: Clock) -> None:
    for clock.now in (1000.0, 1000.1, 1001.0, 1001.1, 1010.0, 1010.1):
        stopping._take_signal(signal.SIGINT)  # ends this process at the third press within 5 s

    assert stopping.code() is StopReason.INTERRUPTED


def test_signals_that_a_parent_had_blocked_are_noted(tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with Stopping(StoppingConfig(), tmp_path, LEADER) as stopping:
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: stopping.is_requested)
    finally:
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert signal.SIGUSR1 in mask


def stop_at(launch: Launch, folder: str, asked_rank: int) -> tuple[StopReason, int]:
    """Step until all ranks agree to stop; one is asked to before its third step."""
    start_processes(launch, timeout_seconds=60)
    with Stopping(StoppingConfig(), Path(folder), launch) as stopping:
        for step in range(1000):
            reason = StopReason(agree_max([stopping.code()])[0])
            if reason:
                return reason, step
            if launch.rank == asked_rank and step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                wait_until(lambda: stopping.is_requested)
    raise AssertionError("nobody was asked to stop")


@pytest.mark.distributed
def test_one_rank_is_asked_and_all_stop_at_the_same_step(tmp_path: Path) -> None:
    assert run_distributed(stop_at, 2, str(tmp_path), 1) == [(StopReason.TERMINATED, 3)] * 2


def test_a_file_stops_this_run_but_not_the_next(
    tmp_path: Path, stopping: Stopping, clock: Clock
) -> None:
    assert stopping.code() is StopReason.NONE
    (tmp_path / "STOP").touch()
    assert stopping.code() is StopReason.NONE  # looked for once a second
    clock.now += 1.0
    assert stopping.code() is StopReason.STOP_FILE

    stopping.leave(StopReason.STOP_FILE, 7, tmp_path / "checkpoints" / "step_00000007")

    assert not (tmp_path / "STOP").exists()
    assert Stopping(StoppingConfig(), tmp_path, LEADER).code() is StopReason.NONE


def test_only_the_leader_looks_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()

    assert Stopping(StoppingConfig(), tmp_path, OTHER).code() is StopReason.NONE


def test_the_time_limit_counts_from_the_start_of_the_program(tmp_path: Path, clock: Clock) -> None:
    stopping = Stopping(StoppingConfig(max_hours=0.5), tmp_path, OTHER, clock=clock)

    clock.now = LEADER.started + 1799.0
    assert stopping.code() is StopReason.NONE
    clock.now = LEADER.started + 1800.0
    assert stopping.code() is StopReason.TIME_LIMIT


def test_a_sigterm_after_the_death_of_a_launcher_is_told_from_others(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as launcher:
        mark = mark_process(launcher.pid)
        assert mark is not None
        launch = replace(LEADER, launchers=(mark,))
        with Stopping(StoppingConfig(), tmp_path, launch) as stopping:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: stopping.is_requested)
            assert stopping.code() is StopReason.TERMINATED
            launcher.kill()
            launcher.wait()
            assert stopping.code() is StopReason.LAUNCHER_GONE


def test_a_lost_lock_stops_the_run_whatever_else_is_asked(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, LEADER)
    stopping = Stopping(StoppingConfig(), tmp_path, LEADER, lock=lock)
    (tmp_path / "STOP").touch()
    assert stopping.code() is StopReason.STOP_FILE

    lock._is_lost = True

    assert stopping.code() is StopReason.LOCK_LOST
    assert stopping.leave(StopReason.LOCK_LOST, 7, tmp_path) is ExitCode.FAILED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["STOP"]  # it is another's folder


def test_a_person_counts_for_more_than_a_machine() -> None:
    """A Ctrl-C arrives as SIGTERM too, by way of the launcher, and must not requeue the job."""
    assert max(StopReason.INTERRUPTED, StopReason.TERMINATED).is_by_person
    assert max(StopReason.STOP_FILE, StopReason.LAUNCHER_GONE).is_by_person
    assert not max(StopReason.TIME_LIMIT, StopReason.USER_SIGNAL).is_by_person


def test_a_checkpoint_that_would_not_be_done_in_the_grace_is_not_begun(
    stopping: Stopping, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The last checkpoint stands, and the message names the setting."""
    assert stopping.may_save(1e6)  # no request has a deadline
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: stopping.is_requested)

    clock.now += 10.0
    assert stopping.may_save(15.0)
    assert not caplog.text.count("stopping.grace_seconds")
    assert not stopping.may_save(15.1)
    assert "stopping.grace_seconds=25 only 15.0 are left" in caplog.text


def test_the_grace_counts_from_the_first_of_two_deadlines(tmp_path: Path, clock: Clock) -> None:
    with subprocess.Popen(["sleep", "60"]) as launcher:
        mark = mark_process(launcher.pid)
        assert mark is not None
        launch = replace(LEADER, launchers=(mark,))
        with Stopping(StoppingConfig(), tmp_path, launch, clock=clock) as stopping:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: stopping.is_requested)
            launcher.kill()
            launcher.wait()
            clock.now += 10.0
            assert stopping.code() is StopReason.LAUNCHER_GONE  # noted 10 s after the SIGTERM

            assert stopping.may_save(15.0)  # of the 25 s of grace
            assert not stopping.may_save(15.1)


def test_a_warning_signal_leaves_time_to_save(stopping: Stopping, clock: Clock) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    wait_until(lambda: stopping.is_requested)
    clock.now += 1000.0

    assert stopping.may_save(1e6)


def test_a_stopped_run_says_so_until_it_starts_again(tmp_path: Path, stopping: Stopping) -> None:
    code = stopping.leave(StopReason.TERMINATED, 7, tmp_path / "checkpoints" / "step_00000006")

    marker = json.loads((tmp_path / "stopped.json").read_text())
    assert code == 75
    assert (marker["reason"], marker["by_person"]) == ("terminated", False)
    assert (marker["step"], marker["requeued"]) == (7, False)
    assert marker["checkpoint"].endswith("step_00000006")
    with Stopping(StoppingConfig(), tmp_path, OTHER):
        assert (tmp_path / "stopped.json").exists()
    with Stopping(StoppingConfig(), tmp_path, LEADER):
        assert not (tmp_path / "stopped.json").exists()


@pytest.mark.parametrize(
    ("reason", "wants_requeue", "slurm_agrees", "is_requeued"),
    [
        pytest.param(StopReason.USER_SIGNAL, True, True, True, id="the scheduler warned"),
        pytest.param(StopReason.TIME_LIMIT, True, True, True, id="its own time limit"),
        pytest.param(StopReason.USER_SIGNAL, True, False, False, id="Slurm does not want it"),
        pytest.param(StopReason.USER_SIGNAL, False, True, False, id="stopping.requeue=false"),
        pytest.param(StopReason.STOP_FILE, True, True, False, id="a person's file"),
        pytest.param(StopReason.INTERRUPTED, True, True, False, id="a person's Ctrl-C"),
    ],
)
def test_the_leader_puts_its_job_back_into_the_queue_unless_a_person_stopped_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: StopReason,
    wants_requeue: bool,
    slurm_agrees: bool,
    is_requeued: bool,
) -> None:
    jobs: list[str] = []

    def requeue(job: str) -> bool:
        # Slurm may end this process from now on: everything must be recorded.
        assert json.loads((tmp_path / "stopped.json").read_text())["requeued"]
        jobs.append(job)
        return slurm_agrees

    monkeypatch.setattr(stopping_module, "requeue_job", requeue)
    config = StoppingConfig(requeue=wants_requeue)
    ending = tmp_path / "ending.txt"
    for launch in (LEADER, OTHER):
        place = replace(launch, job="7", ending_file=str(ending))
        Stopping(config, tmp_path, place).leave(reason, 3, tmp_path)

    assert json.loads((tmp_path / "stopped.json").read_text())["requeued"] is is_requeued
    assert jobs == (["7"] if is_requeued or not slurm_agrees else [])
    # The batch script may succeed if the rank could not.
    assert ending.read_text().split() == ["75", *(["requeue"] if jobs else [])]
