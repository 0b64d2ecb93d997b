"""The process of every rank: its position, its machine, and the kernel's word on it.

The ranks exchange this once. Logs and reports name a rank in these words.
"""

import os
import socket
from dataclasses import dataclass

import psutil

from ernie_vilg.parallel.layout.collectives import gather_everywhere
from ernie_vilg.parallel.layout.coordinates import coordinates_of
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.system.processes import ProcessMark, is_running, mark_process, this_machine

_GONE = "its process is gone"
_STATES = {
    psutil.STATUS_STOPPED: "its process is stopped by a signal",
    psutil.STATUS_TRACING_STOP: "its process is stopped by a debugger",
    psutil.STATUS_DISK_SLEEP: "its process waits for a disk, a network file system or a driver",
    psutil.STATUS_RUNNING: "its process runs, in a call that holds the GIL",
    psutil.STATUS_SLEEPING: "its process waits, in a call that holds the GIL",
}
"""Explanation of a missing heartbeat by the kernel's state of the process."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One rank of the run; constant while it runs."""

    rank: int
    """Rank among all."""
    coordinates: str
    """Position in the layout, in words."""
    host: str
    """Name of its machine."""
    machine: str
    """Identity of its machine, equal for processes that see each other's process ids."""
    process: ProcessMark
    """Process on that machine."""

    def __str__(self) -> str:
        return (
            f"rank {self.rank} ({self.coordinates} on {self.host}, pid {self.process.process_id})"
        )


def gather_members(groups: Groups) -> list[Member]:
    """Return the member of every rank, in their order; all ranks must call."""
    process = mark_process(os.getpid())
    assert process is not None, "this process runs"
    return gather_everywhere(
        Member(
            rank=groups.rank,
            coordinates=str(coordinates_of(groups.rank, groups)),
            host=socket.gethostname(),
            machine=this_machine(),
            process=process,
        )
    )


def process_state(member: Member) -> str:
    """Describe the kernel's state of a process on this machine."""
    if not is_running(member.process):
        return _GONE
    try:
        status = psutil.Process(member.process.process_id).status()
    except psutil.NoSuchProcess:
        return _GONE
    return _STATES.get(status, f"its process is {status}")
