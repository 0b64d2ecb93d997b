"""Restarts a command until its ending is final, for `launch.supervise`."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import psutil

from ernie_vilg.checkpoint.folder import committed_checkpoints, step_of
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.errors import InputError
from ernie_vilg.resilience.stopping import StopReason
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.system.processes import catches_signal
from launch.support.process_tree import (
    adopt_orphans,
    reap_ended,
    send_signal,
    stop_descendants,
    stop_with_parent,
)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 35.0
"""Longer than the grace that launchers give their ranks."""
_LONGEST_PAUSE_SECONDS = 300.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """End of one start of the run."""

    return_code: int
    """Exit code of the command, or of a rank that refused its settings; minus the signal's number
    if a signal ended the command."""
    marker: dict[str, Any] | None
    """Content of `stopped.json`, if this start has written it."""
    is_locked: bool
    """Whether the run's lock is left, which a leader removes when it ends in order."""
    signal_number: int | None
    """Last signal that this program received during the start."""

    @property
    def is_done(self) -> bool:
        """Whether all steps are made; `deepspeed` returns 0 for a killed launcher, too."""
        is_stopped = self.is_locked or self.marker is not None
        return self.return_code == ExitCode.DONE and not is_stopped

    @property
    def is_final(self) -> bool:
        """Whether the run must not be restarted."""
        if self.is_done or self.return_code == ExitCode.BAD_SETTINGS:
            return True
        if self.signal_number in _ENDING_SIGNALS:
            return True
        if self.marker is None:
            return False
        is_over = self.marker["reason"] == StopReason.TIME_LIMIT.name.lower()
        return bool(self.marker["by_person"] or self.marker["requeued"] or is_over)

    @property
    def exit_code(self) -> int:
        """Exit code of this program after a final ending."""
        if self.marker is not None:  # torchrun's exit code does not tell
            return ExitCode.STOPPED
        if self.return_code == ExitCode.DONE and not self.is_done:
            return ExitCode.FAILED
        return self.return_code if self.return_code >= 0 else 128 - self.return_code


class Supervisor:
    """Restarts one command until its ending is final."""

    def __init__(
        self, command: Sequence[str], run_dir: Path, *, max_failures: int, pause_seconds: float
    ) -> None:
        """Take the command and its limits.

        Args:
            command: arguments of the command.
            run_dir: run folder, whose checkpoints show progress.
            max_failures: most starts in a row without a new checkpoint.
            pause_seconds: pause before the next start; it doubles after each start without one.
        """
        self._command = command
        self._run_dir = run_dir
        self._max_failures = max_failures
        self._pause_seconds = pause_seconds
        self._signal_number: int | None = None
        self._deadline = float("inf")

    def run(self) -> int:
        """Start the command until its ending is final; return the exit code."""
        adopt_orphans()
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)
        failures = 0
        while True:
            step = newest_step(self._run_dir)
            ending = self._run_once()
            if ending.is_final:
                return ending.exit_code
            failures = 0 if newest_step(self._run_dir) > step else failures + 1
            if failures >= self._max_failures:
                logger.error(
                    "%d starts in a row made no new checkpoint: giving up, see the run's log",
                    failures,
                )
                return ending.exit_code
            pause = min(self._pause_seconds * 2**failures, _LONGEST_PAUSE_SECONDS)
            logger.warning(
                "the run ended with exit code %d after checkpoint %d: restarting it in %g s",
                ending.return_code,
                newest_step(self._run_dir),
                pause,
            )
            if self._was_told_to_end(pause):
                return ending.exit_code

    def _run_once(self) -> Ending:
        """Run the command to its end, and stop all processes that it leaves."""
        with TemporaryDirectory(prefix="supervise-") as folder:
            return self._run_with(Path(folder) / "ending.txt")

    def _run_with(self, ending_file: Path) -> Ending:
        """Run the command, whose ranks write how they end to a file."""
        before = _read_marker(self._run_dir)
        self._signal_number, self._deadline = None, float("inf")
        process = subprocess.Popen(
            self._command,
            env=os.environ | {"ENDING_FILE": str(ending_file)},  # launchers hide ranks' exit codes
            start_new_session=True,  # Ctrl-C reaches only this program, which passes it on
            preexec_fn=stop_with_parent,
        )
        while process.returncode is None and time.monotonic() < self._deadline:
            time.sleep(_POLL_SECONDS)
            reap_ended(process)
        if process.returncode is None:
            process.returncode = -signal.SIGKILL  # its grace is over, and it is killed below
        stop_descendants(_GRACE_SECONDS)
        reap_ended(process)
        after = _read_marker(self._run_dir)
        return Ending(
            return_code=ExitCode.BAD_SETTINGS if _is_refused(ending_file) else process.returncode,
            marker=after[1] if after is not None and after != before else None,
            is_locked=RunFolder(self._run_dir).lock.exists(),
            signal_number=self._signal_number,
        )

    def _was_told_to_end(self, seconds: float) -> bool:
        """Wait; return whether a signal asked this program to end meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._signal_number not in _ENDING_SIGNALS:
            time.sleep(_POLL_SECONDS)
        return self._signal_number in _ENDING_SIGNALS

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal_number = number
        descendants = psutil.Process().children(recursive=True)
        # The signal would kill a launcher without a handler, which leaves its ranks running.
        receivers = [process for process in descendants if catches_signal(process.pid, number)]
        if number in _ENDING_SIGNALS:
            self._deadline = min(self._deadline, time.monotonic() + _GRACE_SECONDS)
            receivers = receivers or descendants
        for process in receivers:
            send_signal(process, number)


def _is_refused(ending_file: Path) -> bool:
    """Return whether a rank refused its settings; `launch/slurm/job.sh` reads the same file."""
    code = ending_file.read_text().split("\n")[0] if ending_file.exists() else ""
    return code == str(ExitCode.BAD_SETTINGS.value)


def newest_step(run_dir: Path) -> int:
    """Return the step of a run's newest checkpoint; -1 without one."""
    return max((step_of(path) or 0 for path in committed_checkpoints(run_dir)), default=-1)


def _read_marker(run_dir: Path) -> tuple[int, dict[str, Any]] | None:
    """Return the time and content of `stopped.json`; None without one."""
    path = RunFolder(run_dir).stopped
    try:
        return path.stat().st_mtime_ns, read_object(path)
    except FileNotFoundError:
        return None
    except InputError as error:
        logger.warning("%s", error)
        return None
