"""Stopping on request: noted at once, done at the next step boundary, with a checkpoint.

Who may ask: a scheduler by signal, a person by Ctrl-C or by a file `STOP` in the run folder, the
clock, the death of a launcher. A request reaches some ranks earlier than others, so that the loop
agrees on the largest code of all ranks before every step, and all stop at the same one.

What a run leaves behind is `stopped.json`: launchers replace exit codes by their own.

Source: ours; exit code 75 and the file marker follow the lesson that torchrun ends with 1 even
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
"""One Ctrl-C arrives twice where a launcher passes it on."""
_PRESSES_SECONDS = 5.0
_PRESSES = 3

logger = logging.getLogger(__name__)


class StopReason(IntEnum):
    """Why a run stops. Of several reasons the largest counts, on all ranks."""

    NONE = 0
    TIME_LIMIT = 1
    USER_SIGNAL = 2
    TERMINATED = 3
    LAUNCHER_GONE = 4
    INTERRUPTED = 5
    STOP_FILE = 6
    LOCK_LOST = 7

    def __str__(self) -> str:
        """Say it in words."""
        return _IN_WORDS[self]

    @property
    def is_by_person(self) -> bool:
        """Whether a person wanted this run to stop, who will start it again when it is time."""
        return self in (StopReason.INTERRUPTED, StopReason.STOP_FILE)

    @property
    def has_deadline(self) -> bool:
        """Whether someone kills the run if it does not stop within the grace."""
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
    """Takes requests to stop for as long as its block runs; of the main thread alone."""

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
            config: time limit, grace, requeueing.
            run_dir: where people put `STOP` and find `stopped.json`.
            launch: this process's place.
            lock: stops the run when it is lost.
            clock: monotonic seconds, that of `launch.started`.
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
        """Take signals over, and clear what an earlier stop left behind."""
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
        """Give the signals back."""
        self._signals.stop()

    @property
    def is_requested(self) -> bool:
        """Whether this rank knows of a request to stop; for polling in long work of one rank."""
        return self.code() != StopReason.NONE

    def code(self) -> StopReason:
        """Return why this rank thinks that the run should stop, as far as it knows."""
        self._look_around()
        return max(list(self._arrived), default=StopReason.NONE)

    def may_save(self, expected_seconds: float) -> bool:
        """Say whether a checkpoint begun now would be whole before the run is killed.

        Ranks may differ by when their signal arrived: agree before acting on it.

        Args:
            expected_seconds: that the checkpoint takes, as the last one did.
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
                "%.1f are left; the last checkpoint stands. Raise it where whoever sends the "
                "SIGTERM waits longer (torchrun --shutdown-timeout, Slurm's KillWait), or set "
                "checkpoint.every lower",
                expected_seconds,
                self._config.grace_seconds,
                left,
            )
        return False

    def leave(self, reason: StopReason, step: int, checkpoint: Path | None) -> ExitCode:
        """Write down that the run stops, requeue its job if it has one; return the exit code.

        Nothing may be left to do on any rank, and the others wait for the leader: a requeued job
        is ended at once, and some launchers end all ranks after the first.

        Args:
            reason: what all ranks agreed on.
            step: steps taken.
            checkpoint: that the run goes on from; None if there is none.
        """
        code = ExitCode.FAILED if checkpoint is None else ExitCode.STOPPED
        if self._launch.is_leader and reason is StopReason.LOCK_LOST:
            logger.error("stopped at step %d, nothing was written: %s", step, reason)
        elif self._launch.is_leader:
            self._write_down(reason, step, checkpoint)
            self._hand_on(reason, code)
        if reason is StopReason.LOCK_LOST:
            return ExitCode.FAILED
        return code

    def _write_down(self, reason: StopReason, step: int, checkpoint: Path | None) -> None:
        logger.info(
            "stopped at step %d: %s; the same command goes on from %s", step, reason, checkpoint
        )
        if self._folder.stop.exists():  # the next start is not meant
            self._folder.stop.replace(self._folder.honoured_stop)
        marker = {
            "reason": reason.name.lower(),
            "in_words": str(reason),
            "by_person": reason.is_by_person,
            "step": step,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "requeued": False,
        }
        write_json(self._folder.stopped, marker)

    def _hand_on(self, reason: StopReason, code: ExitCode) -> None:
        """Put the job back into the queue, or have its batch script do so."""
        job = None if reason.is_by_person or not self._config.requeue else self._launch.job
        if code is ExitCode.STOPPED:
            # A container may lack scontrol, which the script outside of it has.
            write_ending(self._launch.ending_file, code, "" if job is None else REQUEUE)
        if job is None:
            return
        path = self._folder.stopped
        marker = read_json(path)
        # Written first: the requeued job's processes may be ended before they can write it.
        write_json(path, {**marker, "requeued": True})
        if not requeue_job(job):
            write_json(path, marker)

    def _look_around(self) -> None:
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
        """Note a signal; runs in the listener's thread."""
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
        self._arrived.setdefault(reason, now)  # two threads may be here at the same time
        if is_new and self._launch.is_leader:
            logger.warning("%s: stopping after this step", reason)
