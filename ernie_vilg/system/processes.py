"""Processes: an identity that outlives process ids and clocks, and the end of whole families.

The kernel reuses the id of a process that has ended, and the time of day may be set back. The tick
after boot at which a process started is unique on this boot of this machine.

Source: proc(5), pid_namespaces(7), prctl(2).
"""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1
_ENDED_STATES = ("Z", "X")
"""States of a process that has ended; it stays visible until its parent waits for it."""


@dataclass(frozen=True, kw_only=True)
class ProcessMark:
    """A process of this machine; no later one equals it."""

    process_id: int
    """Kernel's number of the process, reused after its end."""
    start_ticks: int
    """Clock ticks from boot to the start of the process."""


def mark_process(process_id: int) -> ProcessMark | None:
    """Return the mark of a process, None if it has ended or does not exist."""
    fields = _stat_fields(process_id)
    if fields is None or fields[0] in _ENDED_STATES:
        return None
    return ProcessMark(process_id=process_id, start_ticks=int(fields[19]))


def is_running(mark: ProcessMark) -> bool:
    """Return whether a process has not ended; one that is stopped or hangs has not."""
    return mark_process(mark.process_id) == mark


def parent_of(process_id: int) -> int:
    """Return the id of a process's parent, 0 if it is not visible."""
    fields = _stat_fields(process_id)
    return int(fields[1]) if fields is not None else 0


def signal_at_parents_end(number: int) -> None:
    """Ask the kernel to signal this process when the thread that started it has ended.

    A SIGKILL ends a stopped process too. Child processes do not inherit this. A parent that ended
    before this call sends nothing.

    Raises:
        OSError: the kernel refuses.
    """
    set_process_attribute(_PR_SET_PDEATHSIG, number)


def set_process_attribute(option: int, value: int) -> None:
    """Set an attribute of this process, by its number in prctl(2).

    Raises:
        OSError: the kernel refuses.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl option {option} failed")


def kill_descendants(process_id: int) -> None:
    """Kill all processes that a process has started, and theirs."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(process_id).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def words_of(process_id: int) -> list[str]:
    """Return a process's command line, empty for a process that has ended."""
    try:
        line = (_PROC / str(process_id) / "cmdline").read_bytes()
    except OSError:
        return []
    return line.decode(errors="replace").rstrip("\0").split("\0")


def catches_signal(process_id: int, number: int) -> bool:
    """Return whether a process has a handler of its own for a signal."""
    try:
        status = (_PROC / str(process_id) / "status").read_text(errors="replace")
    except OSError:
        return False
    lines = dict(line.partition(":")[::2] for line in status.splitlines())
    caught = int(lines["SigCgt"], base=16)  # bit 0 is signal 1
    return bool(caught >> (number - 1) & 1)


def this_machine() -> str:
    """Return an identity that two processes share if and only if they see each other's ids.

    A host name does not suffice: containers on two machines may have the same one.
    """
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"


def _stat_fields(process_id: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat, beginning with the third, the state."""
    try:
        line = (_PROC / str(process_id) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses; the name may hold blanks.
    return line.rpartition(")")[2].split()
