"""The watchdog: reports which rank holds up a run that hangs, and ends the run.

A rank that waits for another is blocked, but its threads are not. When a step or another phase
exceeds its timeout, the watchdog's thread reads all heartbeats, writes its verdict and the Python
stacks into the run folder, and ends the process with an error. The launcher then ends the other
ranks, and the supervisor or the scheduler restarts the run. Every rank watches, and the first
timeout ends the run.

Timeouts count the time that this process has seen pass on a monotonic clock: neither setting the
time of day nor suspending the whole job looks like a hang.

If a call holds the GIL, no Python thread can run. faulthandler's timer needs none: the watchdog
re-arms it at every poll, and it ends the process when the watchdog stops.

Source: NVIDIA's resiliency extension has heartbeats with a timeout per section.
"""

import faulthandler
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import torch

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.parallel.layout.collectives import LEADER
from ernie_vilg.parallel.layout.device_threads import device_thread
from ernie_vilg.parallel.layout.flight_record import record_path, recorded_collectives
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.resilience.hang_verdict import Findings, HangVerdict, find_suspects, table
from ernie_vilg.resilience.heartbeats import (
    Beat,
    CollectiveNote,
    Heartbeats,
    call_within,
    connect_to_store,
)
from ernie_vilg.resilience.members import Member, process_state
from ernie_vilg.runs.phases import CurrentPhase, Phase, Phases
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_bytes

_STEP_PHASES = (Phase.DATA, Phase.STEP)
"""Phases of a step, which share one timeout."""
_POLL_SECONDS = 1.0
_STORE_SECONDS = 5.0
_WRITE_SECONDS = 10.0
_RECORD_SECONDS = 5.0
_STACK_SECONDS = 20.0
_LINGER_SECONDS = 1.0
_LEADER_LINGER_SECONDS = 3.0
"""The leader may keep the store that the others still read."""
_GIL_SECONDS = 60.0
"""Seconds beyond the timeout, after which faulthandler ends a process whose threads do not run."""

logger = logging.getLogger(__name__)


class Countdown:
    """Seconds until the timeout of a rank's phase, in time that its process has seen pass."""

    def __init__(self, config: WatchConfig) -> None:
        """Start.

        Args:
            config: the timeouts.
        """
        self._config = config
        self._counted: tuple[str, float] = ("", 0.0)
        self._seconds = 0.0
        self._seen = time.monotonic()

    def left(self, current: CurrentPhase, poll_seconds: float) -> float:
        """Return the seconds left, by the time that passed since the last call.

        Args:
            current: the rank's phase. A step's data and the step count as one phase.
            poll_seconds: time between two calls; of a longer gap, the process has seen no more.
        """
        now = time.monotonic()
        gap = min(now - self._seen, 2 * poll_seconds)
        self._seen = now
        is_step = current.phase in _STEP_PHASES
        counted = ("step", float(current.step)) if is_step else (current.phase.value, current.since)
        if counted == self._counted:
            self._seconds += gap
        else:
            self._counted, self._seconds = counted, min(now - current.since, gap)
        timeout, _ = timeout_of(current.phase, self._config)
        return timeout - self._seconds


def timeout_of(phase: Phase, config: WatchConfig) -> tuple[float, str]:
    """Return a phase's timeout in seconds, and the setting that holds it."""
    name = "step_timeout_seconds" if phase in _STEP_PHASES else "phase_timeout_seconds"
    return getattr(config, name), f"watch.{name}"


class Watchdog:
    """Watches this rank's phases while it is open; all ranks open theirs."""

    def __init__(
        self,
        config: WatchConfig,
        phases: Phases,
        *,
        rank: int,
        device: torch.device,
        members: Sequence[Member],
        run_dir: Path,
        communication: Communication,
    ) -> None:
        """Prepare; entering the block starts the watch.

        Args:
            config: the timeouts.
            phases: this rank's phases.
            rank: this rank.
            device: this rank's device.
            members: every rank.
            run_dir: the run's folder; reports go into its folder `reports`.
            communication: this rank's collectives.
        """
        self.reading: Callable[[], str] = lambda: ""
        """Returns the shards that data workers wait for; set once there are workers."""
        self._config = config
        self._phases = phases
        self._run_dir = run_dir
        self._communication = communication
        self._device = device
        self._members = members
        self._own = members[rank]
        self._heartbeats = Heartbeats(
            rank, config.heartbeat_seconds, self._beat, connect_to_store(), device
        )
        self._is_over = threading.Event()
        self._thread = device_thread(self._watch, device, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._heartbeats.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._heartbeats.__exit__(kind, error, trace)

    def _watch(self) -> None:
        timeouts = self._config.step_timeout_seconds, self._config.phase_timeout_seconds
        poll_seconds = min(_POLL_SECONDS, min(timeouts) / 10)
        countdown = Countdown(self._config)
        while not self._is_over.wait(poll_seconds):
            current = self._phases.now
            left = countdown.left(current, poll_seconds)
            _arm_faulthandler(max(left, 0.0) + _GIL_SECONDS)
            if left <= 0:
                self._end(current)
                return

    def _end(self, current: CurrentPhase) -> None:
        """Report the ranks that hold up the run, and end this process."""
        # First: other ranks, which end a moment later, may end this one.
        call_within(_RECORD_SECONDS, self._write_collectives, self._device)
        findings = self._find()
        verdict = find_suspects(findings)
        live = [rank for rank in findings.beats if rank not in findings.silent]
        is_speaker = self._own.rank == min(live, default=self._own.rank)
        path = self._report_path(current)
        timeout = self._timeout_words(current)
        if is_speaker:
            logger.error("%s. %s. Reports: %s", timeout, verdict.headline, path.parent)
        text = "\n\n".join(
            [
                f"{timeout}, {datetime.now(UTC).isoformat(timespec='seconds')}, on {self._own}.",
                f"Verdict: {verdict.headline}.",
                "Ranks:\n" + "\n".join(table(findings)),
                f"Python stacks of rank {self._own.rank}:\n{_own_stacks()}",
                *(self._suspects_stacks(verdict) if is_speaker else []),
            ]
        )
        # The disk may be what hangs.
        call_within(_WRITE_SECONDS, lambda: write_bytes(path, (text + "\n").encode()))
        time.sleep(_LEADER_LINGER_SECONDS if self._own.rank == LEADER else _LINGER_SECONDS)
        os._exit(ExitCode.FAILED)

    def _write_collectives(self) -> None:
        """Write torch's record of the last collectives, which torch would write only later."""
        record = recorded_collectives()
        if record is not None:
            write_bytes(record_path(RunFolder(self._run_dir).reports, self._own.rank), record)

    def _find(self) -> Findings:
        """Compare two readings of all heartbeats."""
        ranks = range(len(self._members))
        before = self._heartbeats.read(ranks, _STORE_SECONDS)
        if before is None:
            return self._find_without_store()
        time.sleep(2 * self._config.heartbeat_seconds + _LINGER_SECONDS)
        after = self._heartbeats.read(ranks, _STORE_SECONDS)
        if after is None:
            return self._find_without_store()
        others = frozenset(ranks) - {self._own.rank}
        silent = frozenset(rank for rank in others if _is_silent(rank, before, after))
        return Findings(
            members=self._members, beats=after, silent=silent, states=self._states(silent)
        )

    def _find_without_store(self) -> Findings:
        """Look at the processes of this machine: nothing else can be known."""
        others = frozenset(range(len(self._members))) - {self._own.rank}
        stuck = {
            rank: state
            for rank, state in self._states(others).items()
            if "stopped" in state or "gone" in state
        }
        silence = "the store through which the ranks have met, which it keeps, does not answer"
        states = stuck or {LEADER: silence}
        return Findings(
            members=self._members,
            beats={self._own.rank: self._beat()},
            silent=frozenset(states),
            states=states,
        )

    def _states(self, ranks: frozenset[int]) -> dict[int, str]:
        """Return the kernel's states of the ranks that are on this machine."""
        return {
            rank: process_state(self._members[rank])
            for rank in ranks
            if self._members[rank].machine == self._own.machine
        }

    def _beat(self) -> Beat:
        now = self._phases.now
        collective, last = self._communication.current, self._communication.last
        return Beat(
            phase=now.phase.value,
            step=now.step,
            seconds=time.monotonic() - now.since,
            reading=self.reading(),
            collective=None
            if collective is None
            else CollectiveNote(
                words=str(collective),
                key=collective.key,
                members=list(collective.members),
                number=collective.number,
            ),
            last="" if last is None else str(last),
            counts=self._communication.counts(),
        )

    def _timeout_words(self, current: CurrentPhase) -> str:
        seconds, setting = timeout_of(current.phase, self._config)
        what = f"step {current.step}" if current.phase in _STEP_PHASES else current.phase.value
        return f"{what} takes over {seconds:g} s ({setting})"

    def _report_path(self, current: CurrentPhase) -> Path:
        return RunFolder(self._run_dir).hang_report(current.step, self._own.rank)

    def _suspects_stacks(self, verdict: HangVerdict) -> list[str]:
        """Return the stacks of suspects on this machine, if py-spy is installed."""
        if shutil.which("py-spy") is None:
            return []
        return [
            f"Python stacks of {member}:\n{_stacks_of(member.process.process_id)}"
            for member in (self._members[rank] for rank in verdict.suspects[:2])
            if member.machine == self._own.machine and member.rank != self._own.rank
        ]


def _is_silent(rank: int, before: Mapping[int, Beat], after: Mapping[int, Beat]) -> bool:
    if rank not in after:
        return True
    return rank in before and before[rank].number == after[rank].number


def _arm_faulthandler(seconds: float) -> None:
    """End the process, its stacks on stderr, unless armed again within so many seconds."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)


def _own_stacks() -> str:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode("utf-8", "replace")


def _stacks_of(pid: int) -> str:
    command = ["py-spy", "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_STACK_SECONDS)
    except subprocess.TimeoutExpired:
        return f"py-spy returned none within {_STACK_SECONDS:g} s"
    return done.stdout or done.stderr
