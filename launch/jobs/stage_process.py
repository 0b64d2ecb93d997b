"""Run one stage's command: into its log, measured, and stopped when we are stopped.

Source: ours.
"""

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


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a running or ended stage has cost so far."""

    seconds: float
    """Wall time."""
    peak_memory_bytes: int
    """Largest sum, over the stage's processes, of the memory that is theirs: PSS, which counts a
    page shared by two processes once."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage's command ended."""

    return_code: int
    """0 when it succeeded; 128 + the signal's number when a signal ended it."""
    measurement: Measurement
    """What it cost."""


def run_stage_process(
    command: Sequence[str],
    log: Path,
    *,
    root: Path,
    environment: Mapping[str, str],
    held_file: int,
    observe: Callable[[Measurement], None],
) -> Outcome:
    """Run a command under the guard until it ends.

    Args:
        command: its words; programs are found beside this Python first.
        log: file that its output is appended to.
        root: folder it runs in.
        environment: variables on top of our own.
        held_file: file descriptor that the guard keeps open to its end: a lock on it lasts until
            the last process of the command is gone, even when we are killed outright.
        observe: called about once a second with the cost so far.

    Returns:
        how it ended. When the caller is interrupted (an exception in `observe` or a signal
        handler), the command's processes are stopped before the exception goes on.
    """
    guard = [sys.executable, "-m", "launch.jobs.stage_guard", str(os.getpid()), *command]
    start = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            guard,
            cwd=root,
            env=child_environment({"PYTHONUNBUFFERED": "1", **environment}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches us alone: the guard then stops the stage in order.
            start_new_session=True,
            pass_fds=(held_file,),
        )
    peak = 0
    next_sample = start
    try:
        while process.poll() is None:
            if time.monotonic() >= next_sample:
                next_sample = time.monotonic() + _SAMPLE_EVERY_SECONDS
                peak = max(peak, memory_of_descendants(process.pid))
                observe(Measurement(seconds=time.monotonic() - start, peak_memory_bytes=peak))
            time.sleep(_POLL_SECONDS)
    finally:
        process.terminate()  # nothing happens when it has ended
        process.wait()
    measurement = Measurement(seconds=time.monotonic() - start, peak_memory_bytes=peak)
    return Outcome(return_code=process.returncode, measurement=measurement)


def memory_of_descendants(process_id: int) -> int:
    """Return the bytes of memory that belong to a process's descendants (sum of PSS)."""
    total = 0
    try:
        descendants = psutil.Process(process_id).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    for process in descendants:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue  # it ended between the listing and the reading
    return total


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log, without empty ones, however long the log is."""
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - count * _LINE_BYTES, 0))
        text = file.read().decode(errors="replace")
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-count:]
