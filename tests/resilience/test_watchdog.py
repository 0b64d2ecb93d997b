"""A run that hangs names the rank that holds it up, and ends."""

import ctypes
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.data.batches import workers
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.parallel.timing.span_clock import HostClock
from ernie_vilg.resilience import watchdog
from ernie_vilg.resilience.members import gather_members
from ernie_vilg.resilience.watchdog import Countdown, Watchdog
from ernie_vilg.runs.phases import CurrentPhase, Phase, Phases
from ernie_vilg.system.ports import free_port
from tests.distributed import one_process, run_distributed

STEP_TIMEOUT_SECONDS = 2.0
WATCH = WatchConfig(step_timeout_seconds=STEP_TIMEOUT_SECONDS, heartbeat_seconds=0.2)
FAULTY_STEP = 3


def stop(watch: Watchdog, phases: Phases) -> None:
    """Stop as `kill -STOP` does."""
    os.kill(os.getpid(), signal.SIGSTOP)


def read_for_ever(watch: Watchdog, phases: Phases) -> None:
    """Wait for a shard that does not come."""
    watch.reading = lambda: "worker 0: reading tokens-000007.tar"
    phases.enter(Phase.DATA, FAULTY_STEP)
    time.sleep(60)


def hold_the_gil(watch: Watchdog, phases: Phases) -> None:
    """Stay in a call that holds the GIL."""
    watchdog._GIL_SECONDS = 4.0
    time.sleep(1)  # in which the watchdog arms faulthandler
    ctypes.PyDLL(None).sleep(60)


def watchdog_of(
    config: WatchConfig,
    phases: Phases,
    groups: Groups,
    run_dir: Path,
    communication: Communication,
) -> Watchdog:
    return Watchdog(
        config,
        phases,
        rank=groups.rank,
        device=groups.device,
        members=gather_members(groups),
        run_dir=run_dir,
        communication=communication,
    )


def train_steps(
    launch: Launch, run_dir: Path, faulty_rank: int, fault: Callable[[Watchdog, Phases], None]
) -> None:
    """Take steps for ever; a fault is injected into one rank at one of them."""
    device = start_processes(launch, timeout_seconds=60, dump_folder=run_dir / "reports")
    groups = build_groups(1, 1, device)
    phases = Phases()
    with (
        Communication(groups) as communication,
        watchdog_of(WATCH, phases, groups, run_dir, communication) as watch,
    ):
        for step in itertools.count(1):
            phases.enter(Phase.STEP, step)
            if step == FAULTY_STEP and launch.rank == faulty_rank:
                (run_dir / "faulted").write_text(str(time.monotonic()))
                fault(watch, phases)
            dist.all_reduce(torch.ones(10))


def rank_process(rank: int, world_size: int, port: int, *arguments: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    train_steps(Launch(rank=rank, local_rank=rank, world_size=world_size), *arguments)


def hang(
    run_dir: Path, world_size: int, faulty_rank: int, fault: Callable[[Watchdog, Phases], None]
) -> tuple[list[int | None], float, list[str]]:
    """Run until the other ranks have ended.

    Returns:
        exit codes, seconds from the fault to the end, and the reports. The ranks that ended have
        also written their last collectives.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(workers.PRELOADED_MODULES)
    port = free_port()
    ranks = [
        context.Process(
            target=rank_process, args=(rank, world_size, port, run_dir, faulty_rank, fault)
        )
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    try:
        for index, rank in enumerate(ranks):
            if index != faulty_rank or fault is not stop:
                rank.join(120)
        seconds = time.monotonic() - float((run_dir / "faulted").read_text())
        codes = [rank.exitcode for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    reports = [path.read_text() for path in sorted((run_dir / "reports").glob("hang-*"))]
    return codes, seconds, reports


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("faulty_rank", "fault", "verdict"),
    [
        pytest.param(1, stop, "its process is stopped by a signal", id="a rank is stopped"),
        pytest.param(
            0,
            stop,
            "its process is stopped by a signal",
            id="the rank that keeps the store is stopped",
        ),
        pytest.param(
            1,
            read_for_ever,
            "(worker 0: reading tokens-000007.tar); 1 rank waits",
            id="a rank waits for a shard",
        ),
        pytest.param(
            1,
            hold_the_gil,
            "its process waits, in a call that holds the GIL; 1 rank waits",
            id="no thread of a rank runs",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_rank_that_holds_up_the_run_is_named_and_the_others_end(
    tmp_path: Path, faulty_rank: int, fault: Callable[[Watchdog, Phases], None], verdict: str
) -> None:
    codes, seconds, reports = hang(tmp_path, 2, faulty_rank, fault)

    other = 1 - faulty_rank
    assert codes[other] == 1
    assert seconds < STEP_TIMEOUT_SECONDS + 35  # about 5 when measured
    report = next(text for text in reports if f"on rank {other} " in text.splitlines()[0])
    assert report.startswith("step 3 takes over 2 s (watch.step_timeout_seconds)")
    told = next(line for line in report.splitlines() if line.startswith("Verdict: "))
    assert f"rank {faulty_rank} (tensor 0, pipeline 0, data {faulty_rank} on " in told
    assert verdict in told
    waits_in = next(line for line in report.splitlines() if line.startswith(f"rank {other} "))
    assert "training, step 3, for " in waits_in
    assert "in all_reduce of all ranks (number " in waits_in
    assert "in train_steps" in report, "this rank's own stack"
    record = pickle.loads((tmp_path / "reports" / f"collectives-rank_{other}").read_bytes())
    assert {entry["profiling_name"] for entry in record["entries"]} >= {"gloo:all_reduce"}
    if fault is hold_the_gil:
        assert codes[faulty_rank] == 1, "it has ended itself"


def run_without_a_fault(launch: Launch, run_dir: Path) -> int:
    groups = build_groups(1, 1, start_processes(launch, timeout_seconds=60))
    phases = Phases()
    config = WatchConfig(step_timeout_seconds=0.5, heartbeat_seconds=0.2)
    with (
        Communication(groups) as communication,
        watchdog_of(config, phases, groups, run_dir, communication),
    ):
        began = time.monotonic()
        step = 0
        while time.monotonic() - began < 1:
            phases.enter(Phase.DATA, step)
            phases.enter(Phase.STEP, step)
            time.sleep(0.05)
            step += 1
    return threading.active_count()


@pytest.mark.distributed
def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    assert run_distributed(run_without_a_fault, 1, tmp_path) == [1]
    assert not list(tmp_path.iterdir())


def test_threads_that_ask_the_gpu_use_the_rank_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new thread's current device is GPU 0, where every rank would then open a context."""
    current: dict[int, torch.device] = {}
    monkeypatch.setattr(
        torch.cuda,
        "set_device",
        lambda device: current.update({threading.get_ident(): device}),
    )
    asked: list[tuple[str, torch.device | None]] = []
    ended = threading.Event()

    class FakeClock(HostClock):
        def is_past(self, mark: float) -> bool:
            thread = threading.current_thread()
            asked.append((thread.name, current.get(threading.get_ident())))
            return False

    def end(code: int) -> None:
        ended.set()

    def record() -> None:
        asked.append(("record", current.get(threading.get_ident())))

    monkeypatch.setattr(watchdog.os, "_exit", end)
    monkeypatch.setattr(watchdog, "recorded_collectives", record)
    monkeypatch.setattr(watchdog, "_LEADER_LINGER_SECONDS", 0.0)
    own = torch.device("cuda", 3)
    phases = Phases()
    config = WatchConfig(step_timeout_seconds=0.2, heartbeat_seconds=0.05)
    with one_process():
        groups = replace(build_groups(1, 1, torch.device("cpu")), device=own)
        with Communication(groups, FakeClock()) as communication:
            dist.all_reduce(torch.ones(1))
            asked.clear()
            phases.enter(Phase.STEP, 1)
            with watchdog_of(config, phases, groups, tmp_path, communication):
                assert ended.wait(60)

    threads = {name for name, _ in asked}
    assert threads >= {"heartbeats", "record"}, "the threads ask"
    assert {device for name, device in asked if name != "MainThread"} == {own}


class Clock:
    """A clock that tests move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now)


def during(phase: Phase, step: int, since: float) -> CurrentPhase:
    return CurrentPhase(phase=phase, step=step, since=since)


def test_data_and_training_of_a_step_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    countdown = Countdown(WatchConfig(step_timeout_seconds=240))

    for phase, since, left in [
        (Phase.DATA, 1000.0, 239.0),
        (Phase.DATA, 1000.0, 238.0),
        (Phase.STEP, 1001.5, 237.0),
    ]:
        clock.now += 1
        assert countdown.left(during(phase, 7, since), poll_seconds=1) == left

    clock.now += 1
    assert countdown.left(during(Phase.STEP, 8, clock.now - 0.25), poll_seconds=1) == 239.75


def test_other_phases_have_their_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    countdown = Countdown(WatchConfig(step_timeout_seconds=10, phase_timeout_seconds=100))

    clock.now += 1
    assert countdown.left(during(Phase.SAVE, 7, 1000.0), poll_seconds=1) == 99


def test_time_in_which_the_whole_job_was_suspended_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    countdown = Countdown(WatchConfig(step_timeout_seconds=240))
    where = during(Phase.STEP, 7, 1000.0)
    clock.now += 1
    countdown.left(where, poll_seconds=1)

    clock.now += 3600

    assert countdown.left(where, poll_seconds=1) == 237  # 240 - 1 - two polls


def test_setting_the_time_of_day_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    countdown = Countdown(WatchConfig(step_timeout_seconds=240))
    where = during(Phase.STEP, 7, 1000.0)

    for hours in (1, -1):
        monkeypatch.setattr(watchdog.time, "time", lambda hours=hours: hours * 3600.0)
        clock.now += 1
        left = countdown.left(where, poll_seconds=1)

    assert left == 238
