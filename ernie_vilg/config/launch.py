"""What the launcher says of a process: its place among the others.

Source: ours.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A process's place."""

    rank: int
    """Of this process among all."""
    local_rank: int
    """Of this process among those of its machine."""
    world_size: int
    """Number of processes."""
