"""Which process is which, whatever happens to process ids and clocks.

The kernel gives a process's id to another one when it has ended, and the time of day may be set
back. What stays is the tick after boot at which a process began, on this boot of this machine.

Source: proc(5), pid_namespaces(7), prctl(2).
"""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1
_ENDED_STATES = ("Z", "X")
"""A process that has ended stays visible, as a zombie, until its parent has taken note."""


@dataclass(frozen=True, kw_only=True)
class ProcessMark:
    """A process of this machine; no later one equals it."""

    process_id: int
    """The kernel's number for it, used again after its end."""
    start_ticks: int
    """Clock ticks from boot to its start."""


def mark_process(process_id: int) -> ProcessMark | None:
    """Return the mark of a process, None if there is none with this id or it has ended."""
    fields = _stat_fields(process_id)
    if fields is None or fields[0] in _ENDED_STATES:
        return None
    return ProcessMark(process_id=process_id, start_ticks=int(fields[19]))


def is_running(mark: ProcessMark) -> bool:
    """Say whether a process has not ended; one that is stopped or hangs has not."""
    return mark_process(mark.process_id) == mark


def parent_of(process_id: int) -> int:
    """Return the id of a process's parent, 0 if there is none that we can see."""
    fields = _stat_fields(process_id)
    return int(fields[1]) if fields is not None else 0


def signal_at_parents_end(number: int) -> None:
    """Have the kernel send this process a signal when the one that started it is gone.

    Strictly, when the thread is gone that started it. A process that is stopped gets it as well,
    and a SIGKILL ends it. Processes started from here do not inherit this.

    Raises:
        OSError: the kernel refuses.
    """
    set_process_attribute(_PR_SET_PDEATHSIG, number)


def set_process_attribute(option: int, value: int) -> None:
    """Set one of the attributes that prctl(2) names, of this process.

    Raises:
        OSError: the kernel refuses.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl option {option} failed")


def words_of(process_id: int) -> list[str]:
    """Return a process's command line, empty for a process that has ended."""
    try:
        line = (_PROC / str(process_id) / "cmdline").read_bytes()
    except OSError:
        return []
    return line.decode(errors="replace").rstrip("\0").split("\0")


def catches_signal(process_id: int, number: int) -> bool:
    """Say whether a process has a handler of its own for a signal."""
    try:
        status = (_PROC / str(process_id) / "status").read_text(errors="replace")
    except OSError:
        return False
    lines = dict(line.partition(":")[::2] for line in status.splitlines())
    caught = int(lines["SigCgt"], base=16)  # bit 0 is signal 1
    return bool(caught >> (number - 1) & 1)


def this_machine() -> str:
    """Return what two processes share exactly when they see each other's process ids.

    A host name does not do: containers on two machines may have the same one.
    """
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"


def _stat_fields(process_id: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third, the state, on."""
    try:
        line = (_PROC / str(process_id) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may hold blanks itself.
    return line.rpartition(")")[2].split()
