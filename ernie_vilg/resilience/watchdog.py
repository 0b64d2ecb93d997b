"""The watch over a run that hangs: it says who holds it up and why, and ends it.

A rank that waits for another cannot look around. A thread of it can: when a step, or anything else,
takes longer than allowed, the thread reads the others' signs of life, writes its verdict and
Python's stacks into the run folder, and ends the process with an error, so that the launcher ends
the others and whoever supervises the run starts it again. Every rank watches; the first to time out
is enough.

Time is what this process has seen pass, of a clock that never goes back: neither a clock that is
set nor a job that was suspended as a whole looks like a hang.

Should a call keep Python's lock, no thread runs. For that there is faulthandler, which needs none:
it is wound up again and again, and ends the process when that stops.

Source: ours; heartbeats with a limit per section as in NVIDIA's resiliency extension.
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
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.parallel.layout.collectives import LEADER
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.parallel.timing.collective_watch import Communication
from ernie_vilg.resilience.hang_verdict import Findings, Verdict, judge, table
from ernie_vilg.resilience.heartbeats import (
    Beat,
    CollectiveNote,
    Heartbeats,
    meet,
    meeting_store,
    process_state,
)
from ernie_vilg.runs.phases import CurrentPhase, Phase, Phases
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_bytes

_POLL_SECONDS = 1.0
_STORE_SECONDS = 5.0
_WRITE_SECONDS = 10.0
_STACK_SECONDS = 20.0
_LINGER_SECONDS = 1.0
_LEADER_LINGER_SECONDS = 3.0
"""The leader may keep the store that the others still read."""
_LOCKED_SECONDS = 60.0
"""Beyond the limit, after which faulthandler ends a process whose threads do not run."""

logger = logging.getLogger(__name__)


class Patience:
    """How long what a rank is doing has taken, in time that its process has seen."""

    def __init__(self, config: WatchConfig) -> None:
        """Begin to look.

        Args:
            config: the limits.
        """
        self._config = config
        self._what: tuple[str, float] = ("", 0.0)
        self._seconds = 0.0
        self._seen = time.monotonic()

    def left(self, where: CurrentPhase, poll_seconds: float) -> float:
        """Return the seconds until time is up, by what has passed since the last call.

        Args:
            where: what the rank is doing. A step's data and the step count as one.
            poll_seconds: between two calls; of a longer gap the process has seen no more.
        """
        now = time.monotonic()
        gap = min(now - self._seen, 2 * poll_seconds)
        self._seen = now
        is_step = where.phase in (Phase.DATA, Phase.STEP)
        what = ("step", float(where.step)) if is_step else (where.phase.value, where.since)
        if what == self._what:
            self._seconds += gap
        else:
            self._what, self._seconds = what, min(now - where.since, gap)
        limit = self._config.step_timeout_seconds if is_step else self._config.phase_timeout_seconds
        return limit - self._seconds


class Watchdog:
    """Watches this rank while it is open; all ranks must open theirs."""

    def __init__(
        self,
        config: WatchConfig,
        phases: Phases,
        groups: Groups,
        *,
        run_dir: Path,
        communication: Communication,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        """Meet the other ranks; all must call.

        Args:
            config: the limits.
            phases: where this rank is.
            groups: its place.
            run_dir: reports go into its folder `reports`.
            communication: tells of its collectives.
            leave: ends the process with an exit code, whatever its other threads do.
        """
        self.reading: Callable[[], str] = lambda: ""
        """Says what the data workers do; set once there are any."""
        self._config = config
        self._phases = phases
        self._run_dir = run_dir
        self._communication = communication
        self._leave = leave
        self._crew = meet(groups)
        self._own = self._crew[groups.rank]
        self._heartbeats = Heartbeats(
            groups.rank, config.heartbeat_seconds, self._beat, meeting_store()
        )
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

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
        limits = self._config.step_timeout_seconds, self._config.phase_timeout_seconds
        poll_seconds = min(_POLL_SECONDS, min(limits) / 10)
        patience = Patience(self._config)
        while not self._is_over.wait(poll_seconds):
            where = self._phases.now
            left = patience.left(where, poll_seconds)
            _wind_up(max(left, 0.0) + _LOCKED_SECONDS)
            if left <= 0:
                self._end(where)
                return

    def _end(self, where: CurrentPhase) -> None:
        """Say who holds up the run, and end this process."""
        findings = self._find()
        verdict = judge(findings)
        live = [rank for rank in findings.beats if rank not in findings.silent]
        is_speaker = self._own.rank == min(live, default=self._own.rank)
        path = self._report_path(where)
        limit = self._limit_words(where)
        if is_speaker:
            logger.error("%s. %s. Reports: %s", limit, verdict.headline, path.parent)
        text = "\n\n".join(
            [
                f"{limit}, {datetime.now(UTC).isoformat(timespec='seconds')}, on {self._own}.",
                f"Verdict: {verdict.headline}.",
                "Ranks:\n" + "\n".join(table(findings)),
                f"Python stacks of rank {self._own.rank}:\n{_own_stacks()}",
                *(self._suspects_stacks(verdict) if is_speaker else []),
            ]
        )
        # The disk may be what hangs.
        _bounded(lambda: write_bytes(path, (text + "\n").encode()), _WRITE_SECONDS)
        time.sleep(_LEADER_LINGER_SECONDS if self._own.rank == LEADER else _LINGER_SECONDS)
        self._leave(ExitCode.FAILED)

    def _find(self) -> Findings:
        ranks = [member.rank for member in self._crew]
        before = self._heartbeats.read(ranks, _STORE_SECONDS)
        if before is not None:
            time.sleep(2 * self._config.heartbeat_seconds + _LINGER_SECONDS)
        after = None if before is None else self._heartbeats.read(ranks, _STORE_SECONDS)
        if before is None or after is None:
            return self._find_without_store()
        silent = frozenset(
            rank for rank in ranks if rank != self._own.rank and _is_silent(rank, before, after)
        )
        return Findings(crew=self._crew, beats=after, silent=silent, states=self._states(silent))

    def _find_without_store(self) -> Findings:
        """Look at this machine's processes: more cannot be known."""
        others = frozenset(member.rank for member in self._crew) - {self._own.rank}
        stuck = {
            rank: state
            for rank, state in self._states(others).items()
            if "stopped" in state or "gone" in state
        }
        silence = "the store through which the ranks have met, which it keeps, does not answer"
        states = stuck or {LEADER: silence}
        return Findings(
            crew=self._crew,
            beats={self._own.rank: self._beat()},
            silent=frozenset(states),
            states=states,
        )

    def _states(self, ranks: frozenset[int]) -> dict[int, str]:
        """Return what the kernel says of those ranks that are on this machine."""
        return {
            rank: process_state(self._crew[rank])
            for rank in ranks
            if self._crew[rank].machine == self._own.machine
        }

    def _beat(self) -> Beat:
        where = self._phases.now
        current, last = self._communication.current, self._communication.last
        return Beat(
            phase=where.phase.value,
            step=where.step,
            seconds=time.monotonic() - where.since,
            reading=self.reading(),
            collective=None
            if current is None
            else CollectiveNote(
                words=str(current),
                key=current.key,
                members=list(current.members),
                number=current.number,
            ),
            last="" if last is None else str(last),
            counts=self._communication.counts(),
        )

    def _limit_words(self, where: CurrentPhase) -> str:
        if where.phase in (Phase.DATA, Phase.STEP):
            limit = self._config.step_timeout_seconds
            return f"step {where.step + 1} takes over {limit:g} s (watch.step_timeout_seconds)"
        limit = self._config.phase_timeout_seconds
        return f"{where.phase.value} takes over {limit:g} s (watch.phase_timeout_seconds)"

    def _report_path(self, where: CurrentPhase) -> Path:
        return RunFolder(self._run_dir).hang_report(where.step, self._own.rank)

    def _suspects_stacks(self, verdict: Verdict) -> list[str]:
        """Return the stacks of suspects on this machine, where py-spy is installed."""
        if shutil.which("py-spy") is None:
            return []
        return [
            f"Python stacks of {member}:\n{_stacks_of(member.process.process_id)}"
            for member in (self._crew[rank] for rank in verdict.suspects[:2])
            if member.machine == self._own.machine and member.rank != self._own.rank
        ]


def _is_silent(rank: int, before: Mapping[int, Beat], after: Mapping[int, Beat]) -> bool:
    if rank not in after:
        return True
    return rank in before and before[rank].number == after[rank].number


def _wind_up(seconds: float) -> None:
    """Have the process ended, with its stacks on stderr, unless called again in time."""
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
        return f"py-spy gave none in {_STACK_SECONDS:g} s"
    return done.stdout or done.stderr


def _bounded(call: Callable[[], None], seconds: float) -> None:
    """Run a call, but wait for it no longer than so many seconds."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
