"""What the launcher says of a process: its place among the others.

Source: ours.
"""

import time
from dataclasses import dataclass, field

from ernie_vilg.system.processes import ProcessMark


class RendezvousError(ValueError):
    """The ranks did not find each other.

    It is no `InputError`: the same command may succeed later, when a port becomes free or a machine
    comes back.
    """


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A process's place."""

    rank: int
    """Of this process among all."""
    local_rank: int
    """Of this process among those of its machine."""
    world_size: int
    """Number of processes."""
    job: str | None = None
    """Number of the Slurm job, if there is one."""
    job_restarts: int = 0
    """How often Slurm has begun the job anew."""
    ending_file: str | None = None
    """Where the batch script looks for how the ranks ended, if there is one."""
    launchers: tuple[ProcessMark, ...] = ()
    """Processes of this machine that this one was started by, its parent first."""
    started: float = field(default_factory=time.monotonic, compare=False)
    """`time.monotonic()` at which the program began."""

    @property
    def is_leader(self) -> bool:
        """Whether this is the rank that speaks, writes and decides."""
        return self.rank == 0
