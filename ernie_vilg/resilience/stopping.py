"""Stopping on request, with a checkpoint, at the next step boundary.

A scheduler requests a stop by signal, a person by Ctrl-C or by a file `STOP` in the run folder; the
time limit and the end of a launcher are requests too. A request reaches some ranks earlier than
others. Before every step the loop therefore agrees on the largest code of all ranks, so that all
stop at the same step.

A stopped run writes `stopped.json`, because launchers replace exit codes: torchrun's is 1 even
after a clean save.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from types import TracebackType

from ernie_vilg.config.exit_codes import REQUEUE, ExitCode, write_ending
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.stopping import StoppingConfig
from ernie_vilg.resilience.requeue import requeue_job
from ernie_vilg.resilience.stop_signals import StopSignals
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.system.processes import is_running

_FILE_POLL_SECONDS = 1.0
_SECONDS_PER_HOUR = 3600
_SAME_PRESS_SECONDS = 0.3
"""Two SIGINTs within this time are one Ctrl-C, which a launcher has passed on."""
_PRESSES_SECONDS = 5.0
_PRESSES = 3

logger = logging.getLogger(__name__)


class StopReason(IntEnum):
    """Reason for which a run stops; the largest one of all ranks counts."""

    NONE = 0
    TIME_LIMIT = 1
    USER_SIGNAL = 2
    TERMINATED = 3
    LAUNCHER_GONE = 4
    INTERRUPTED = 5
    STOP_FILE = 6
    LOCK_LOST = 7

    def __str__(self) -> str:
        """Describe the reason for people."""
        return _IN_WORDS[self]

    @property
    def is_by_person(self) -> bool:
        """Whether a person stopped the run, and will start it again by hand."""
        return self in (StopReason.INTERRUPTED, StopReason.STOP_FILE)

    @property
    def has_deadline(self) -> bool:
        """Whether the run is killed if it does not stop within the grace period."""
        return self in (StopReason.TERMINATED, StopReason.LAUNCHER_GONE)


_IN_WORDS = {
    StopReason.NONE: "nobody asked to stop",
    StopReason.TIME_LIMIT: "stopping.max_hours have passed",
    StopReason.USER_SIGNAL: "SIGUSR1 or SIGUSR2 arrived",
    StopReason.TERMINATED: "SIGTERM arrived",
    StopReason.LAUNCHER_GONE: "a launcher is gone",
    StopReason.INTERRUPTED: "Ctrl-C was pressed",
    StopReason.STOP_FILE: "the run folder has a file STOP",
    StopReason.LOCK_LOST: "another run has taken over the run folder",
}

_REASON_OF_SIGNAL = {
    signal.SIGTERM: StopReason.TERMINATED,
    signal.SIGINT: StopReason.INTERRUPTED,
    signal.SIGUSR1: StopReason.USER_SIGNAL,
    signal.SIGUSR2: StopReason.USER_SIGNAL,
}


class Stopping:
    """Takes requests to stop while its block runs; main thread only."""

    def __init__(
        self,
        config: StoppingConfig,
        run_dir: Path,
        launch: Launch,
        *,
        lock: RunLock | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to take requests; entering the block installs the signal handlers.

        Args:
            config: time limit, grace period, requeueing.
            run_dir: the run's folder, with `STOP` and `stopped.json`.
            launch: this process's rank and launchers.
            lock: on the run folder; the run stops when it is lost.
            clock: returns monotonic seconds, on the clock of `launch.started`.
        """
        self._config = config
        self._folder = RunFolder(run_dir)
        self._launch = launch
        self._lock = lock
        self._clock = clock
        self._arrived: dict[StopReason, float] = {}
        self._presses: list[float] = []
        self._next_look = -float("inf")
        self._signals = StopSignals(tuple(_REASON_OF_SIGNAL), self._take_signal)

    def __enter__(self) -> "Stopping":
        """Install the signal handlers, and remove an earlier stop's `stopped.json`."""
        if self._launch.is_leader:
            self._folder.stopped.unlink(missing_ok=True)
        self._signals.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore the signal handlers."""
        self._signals.stop()

    @property
    def is_requested(self) -> bool:
        """Whether this rank knows of a request; long work of one rank polls it."""
        return self.code() != StopReason.NONE

    def code(self) -> StopReason:
        """Return the largest reason to stop that this rank knows of."""
        self._poll()
        return max(list(self._arrived), default=StopReason.NONE)

    def may_save(self, expected_seconds: float) -> bool:
        """Return whether a checkpoint begun now would be complete before the run is killed.

        Ranks may differ, because their signals arrived at different times: agree before acting.

        Args:
            expected_seconds: duration of the checkpoint, by the last one.
        """
        deadlines = [when for reason, when in list(self._arrived.items()) if reason.has_deadline]
        if not deadlines:
            return True
        left = min(deadlines) + self._config.grace_seconds - self._clock()
        if expected_seconds <= left:
            return True
        if self._launch.is_leader:
            logger.warning(
                "no checkpoint now: it would take %.1f s, and of stopping.grace_seconds=%g only "
                "%.1f are left; the last checkpoint stands. Raise it if the sender of the SIGTERM "
                "waits longer (torchrun --shutdown-timeout, Slurm's KillWait), or set "
                "checkpoint.every lower",
                expected_seconds,
                self._config.grace_seconds,
                left,
            )
        return False

    def leave(self, reason: StopReason, step: int, checkpoint: Path) -> ExitCode:
        """Record the stop and requeue the Slurm job, if there is one; return the exit code.

        All ranks must have finished their work and wait for the leader: Slurm ends a requeued job
        at once, and some launchers end all ranks after the first.

        Args:
            reason: the reason that all ranks agreed on.
            step: steps taken.
            checkpoint: the run resumes from it.
        """
        is_lost = reason is StopReason.LOCK_LOST
        if self._launch.is_leader and is_lost:
            logger.error("stopped at step %d, nothing was written: %s", step, reason)
        elif self._launch.is_leader:
            self._record(reason, step, checkpoint)
            self._requeue(reason)
        return ExitCode.FAILED if is_lost else ExitCode.STOPPED

    def _record(self, reason: StopReason, step: int, checkpoint: Path) -> None:
        """Write `stopped.json` and rename `STOP`."""
        logger.info(
            "stopped at step %d: %s; the same command resumes from %s", step, reason, checkpoint
        )
        if self._folder.stop.exists():  # it stops this run, not the next
            self._folder.stop.replace(self._folder.honoured_stop)
        marker = {
            "reason": reason.name.lower(),
            "in_words": str(reason),
            "by_person": reason.is_by_person,
            "step": step,
            "checkpoint": str(checkpoint),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "requeued": False,
        }
        write_json(self._folder.stopped, marker)

    def _requeue(self, reason: StopReason) -> None:
        """Requeue the job, unless a person stopped it or the settings forbid it."""
        job = None if reason.is_by_person or not self._config.requeue else self._launch.job
        # If a container lacks scontrol, the batch script outside of it requeues the job.
        write_ending(self._launch.ending_file, ExitCode.STOPPED, "" if job is None else REQUEUE)
        if job is None:
            return
        path = self._folder.stopped
        marker = read_json(path)
        # Before requeueing, which may end this process at once.
        write_json(path, {**marker, "requeued": True})
        if not requeue_job(job):
            write_json(path, marker)

    def _poll(self) -> None:
        """Note the requests that do not arrive as a signal."""
        now = self._clock()
        max_hours = self._config.max_hours
        if max_hours is not None and now - self._launch.started >= max_hours * _SECONDS_PER_HOUR:
            self._note(StopReason.TIME_LIMIT, now)
        if self._lock is not None and self._lock.is_lost:
            self._note(StopReason.LOCK_LOST, now)
        if StopReason.TERMINATED in self._arrived and not all(
            is_running(launcher) for launcher in self._launch.launchers
        ):
            self._note(StopReason.LAUNCHER_GONE, now)
        if self._launch.is_leader and now >= self._next_look:
            self._next_look = now + _FILE_POLL_SECONDS
            if self._folder.stop.exists():
                self._note(StopReason.STOP_FILE, now)

    def _take_signal(self, number: int) -> None:
        """Note a signal; called in the listener's thread."""
        now = self._clock()
        self._note(_REASON_OF_SIGNAL[signal.Signals(number)], now)
        if number == signal.SIGINT:
            self._count_press(now)

    def _count_press(self, now: float) -> None:
        if self._presses and now - self._presses[-1] < _SAME_PRESS_SECONDS:
            return
        recent = [press for press in self._presses if now - press < _PRESSES_SECONDS]
        self._presses = [*recent, now]
        if len(self._presses) >= _PRESSES:
            logger.warning("Ctrl-C for the third time: ending without a checkpoint")
            os._exit(128 + signal.SIGINT)

    def _note(self, reason: StopReason, now: float) -> None:
        is_new = reason not in self._arrived
        self._arrived.setdefault(reason, now)  # atomic: two threads may be here
        if is_new and self._launch.is_leader:
            logger.warning("%s: stopping after this step", reason)
