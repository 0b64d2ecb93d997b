"""Rank, world size and job of a process, as its launcher set them."""

import time
from dataclasses import dataclass, field

from ernie_vilg.system.processes import ProcessMark


class RendezvousError(ValueError):
    """The ranks did not find each other.

    It is no `InputError`, since the same command may succeed later, when a port becomes free or a
    machine comes back.
    """


class DeviceError(RendezvousError):
    """The machine shows this rank no GPU of its own. Every rank without one says so."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process of a launch."""

    rank: int
    """Rank among all processes."""
    local_rank: int
    """Rank among the processes of this machine."""
    world_size: int
    """Number of processes."""
    job: str | None = None
    """Number of the Slurm job; None without Slurm."""
    job_restarts: int = 0
    """Number of times that Slurm restarted the job."""
    ending_file: str | None = None
    """File from which the batch script reads how ranks ended; None without a batch script."""
    launchers: tuple[ProcessMark, ...] = ()
    """Launchers of this process on this machine, its parent first."""
    started: float = field(default_factory=time.monotonic, compare=False)
    """`time.monotonic()` at the start of the program."""

    @property
    def is_leader(self) -> bool:
        """Whether this rank logs, writes and decides for all."""
        return self.rank == 0
