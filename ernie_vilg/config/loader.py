"""How samples are read: worker processes, remote shards, and what to do about damage.

Source: ours.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ernie_vilg.config.schema import LocalOutput, NumWorkers, PositiveInt, Range, Settings


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(Settings, section="loader"):
    """How one rank reads. Nothing here changes which sample stands where."""

    num_workers: NumWorkers = 1
    """Processes per rank that read ahead; 0 reads in the rank itself, while it waits."""
    prefetch_steps: PositiveInt = 2
    """Steps that each worker reads ahead of the one being trained on."""
    timeout_seconds: PositiveInt = 300
    """How long a rank waits for its next batch before it stops and names the shard being read;
    workers only. Also how long it waits for another process of its node to copy a shard."""
    damage: Literal["stop", "skip"] = "stop"
    """What a damaged shard or sample does: stop ends the run; skip replaces its samples by others
    of the same data set, chosen by the position alone, and records each finding."""
    max_consecutive_damaged: PositiveInt = 100
    """With damage=skip: number of consecutive damaged samples, in one replica's order, at which
    the run stops all the same."""
    max_damaged_fraction: Annotated[float, Range(above=0, at_most=1)] = 0.01
    """With damage=skip: share of damaged samples above which the run stops all the same."""
    cache_dir: LocalOutput | None = None
    """Folder on this node's own disk into which shards are copied before they are read, shared by
    the node's ranks. Required by remote shards; null reads local shards where they are."""
    cache_bytes: PositiveInt = 64 << 30
    """Size of the cache, in bytes; the shards used longest ago make room."""
    max_attempts: PositiveInt = 5
    """How often one shard's transfer into the cache is tried before the run stops."""
