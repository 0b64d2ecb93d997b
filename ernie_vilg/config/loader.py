"""How samples are read: worker processes, remote shards, and what to do about damage.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_output

DAMAGE_POLICIES = ("stop", "skip")
MAX_WORKERS = 256
"""Most processes that one process starts; more is a slip, and would take the machine."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How one rank reads. Nothing here changes which sample stands where."""

    num_workers: int = 1
    """Processes per rank that read ahead; 0 reads in the rank itself, while it waits."""
    prefetch_steps: int = 2
    """Steps that each worker reads ahead of the one being trained on."""
    timeout_seconds: int = 300
    """How long a rank waits for its next batch before it stops and names the shard being read;
    workers only. Also how long it waits for another process of its node to copy a shard."""
    damage: str = "stop"
    """What a damaged shard or sample does: stop ends the run; skip replaces its samples by others
    of the same data set, chosen by the position alone, and writes down each loss."""
    max_consecutive_losses: int = 100
    """With damage=skip: lost samples in a row, in one replica's order, at which the run stops
    nevertheless."""
    max_lost_fraction: float = 0.01
    """With damage=skip: share of all samples lost at which the run stops nevertheless."""
    cache_dir: str | None = None
    """Folder on this node's own disk into which shards are copied before they are read, shared by
    the node's ranks. Required by remote shards; null reads local shards where they are."""
    cache_bytes: int = 64 << 30
    """Size of the cache, in bytes; the shards used longest ago make room."""
    max_attempts: int = 5
    """How often one shard's transfer into the cache is tried before the run stops."""

    def __post_init__(self) -> None:
        if not 0 <= self.num_workers <= MAX_WORKERS:
            raise InputError(f"loader.num_workers={self.num_workers}: set 0 to {MAX_WORKERS}")
        check_local_output(**{"loader.cache_dir": self.cache_dir})
        for name in ("prefetch_steps", "timeout_seconds", "cache_bytes", "max_attempts"):
            if getattr(self, name) < 1:
                raise InputError(f"loader.{name}={getattr(self, name)}: must be at least 1")
        if self.damage not in DAMAGE_POLICIES:
            raise InputError(
                f"loader.damage={self.damage!r}: choose one of {', '.join(DAMAGE_POLICIES)}"
            )
        if self.max_consecutive_losses < 1 or not 0 < self.max_lost_fraction <= 1:
            raise InputError(
                f"loader.max_consecutive_losses={self.max_consecutive_losses}, "
                f"loader.max_lost_fraction={self.max_lost_fraction}: set at least 1, and a share "
                "above 0 and up to 1"
            )
