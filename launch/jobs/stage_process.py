"""Runs a stage's command: writes its log, measures it, and stops it with the main job."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from launch.support.environment import child_environment

_POLL_SECONDS = 0.1
_SAMPLE_EVERY_SECONDS = 1.0
_LINE_BYTES = 4096
_GROWTH = 1.01
"""Growth of the resident memory, as a factor, after which the PSS is read again."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Cost of a stage until now."""

    seconds: float
    """Wall time."""
    peak_memory_bytes: int
    """Largest sum of the processes' PSS, which counts a page of two processes once."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """End of a stage's command."""

    return_code: int
    """0 on success; 128 + the signal's number if a signal ended the command."""
    measurement: Measurement
    """Cost of the command."""


def run_stage_process(
    command: Sequence[str],
    log: Path,
    *,
    root: Path,
    environment: Mapping[str, str],
    held_file: int,
    observe: Callable[[Measurement], None],
) -> Outcome:
    """Run a command under the stage reaper until it ends.

    An exception in `observe` or in a signal handler stops the command's processes first.

    Args:
        command: arguments of the command; programs beside this Python come first.
        log: file to append the output to.
        root: working folder of the command.
        environment: additional variables.
        held_file: file descriptor that the reaper keeps open, so that a lock on it lasts until the
            last process of the command is gone, even if this process is killed.
        observe: function to call about once a second with the cost until now.
    """
    reaper = [sys.executable, "-m", "launch.jobs.stage_reaper", str(os.getpid()), *command]
    start = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            reaper,
            cwd=root,
            env=child_environment({"PYTHONUNBUFFERED": "1", **environment}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches this process only; the reaper then stops the stage in order.
            start_new_session=True,
            pass_fds=(held_file,),
        )
    memory = PeakMemory(process.pid)
    next_sample = start
    try:
        while process.poll() is None:
            if time.monotonic() >= next_sample:
                next_sample = time.monotonic() + _SAMPLE_EVERY_SECONDS
                peak = memory.sample()
                observe(Measurement(seconds=time.monotonic() - start, peak_memory_bytes=peak))
            time.sleep(_POLL_SECONDS)
    finally:
        process.terminate()  # no effect on an ended process
        process.wait()
    measurement = Measurement(seconds=time.monotonic() - start, peak_memory_bytes=memory.peak)
    return Outcome(return_code=process.returncode, measurement=measurement)


class PeakMemory:
    """The largest PSS of a process's descendants.

    To read the PSS of two ranks, Linux walks all their pages: a tenth of a core if done every
    second. It is read only when the resident memory, which costs nothing to read, has grown by
    `_GROWTH`; the peak may be that much too small.
    """

    def __init__(self, process_id: int) -> None:
        self.peak = 0
        """Bytes, in the samples until now."""
        self._process_id = process_id
        self._resident = 0

    def sample(self) -> int:
        """Look at the memory, and return the peak until now, bytes."""
        resident = _sum_over_descendants(self._process_id, lambda each: each.memory_info().rss)
        if resident > self._resident * _GROWTH:
            self._resident = resident
            self.peak = max(self.peak, memory_of_descendants(self._process_id))
        return self.peak


def memory_of_descendants(process_id: int) -> int:
    """Return the memory of a process's descendants in bytes (sum of PSS)."""
    return _sum_over_descendants(process_id, lambda each: each.memory_full_info().pss)


def _sum_over_descendants(process_id: int, bytes_of: Callable[[psutil.Process], int]) -> int:
    total = 0
    try:
        descendants = psutil.Process(process_id).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    for process in descendants:
        try:
            total += bytes_of(process)
        except psutil.NoSuchProcess:
            continue  # the process ended after the listing
    return total


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log that are not empty, reading only the log's end."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - count * _LINE_BYTES, 0))
        text = file.read().decode(errors="replace")
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-count:]
