"""Settings of the loader: worker processes, remote shards, and damage."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ernie_vilg.config.schema import LocalOutput, NumWorkers, PositiveInt, Range, Settings


@dataclass(frozen=True, kw_only=True)
class LoaderConfig(Settings, section="loader"):
    """Reading of one rank. No setting here changes the order of the samples."""

    num_workers: NumWorkers = 1
    """Number of worker processes per rank; 0 reads in the rank, which waits meanwhile."""
    prefetch_steps: PositiveInt = 2
    """Number of steps that each worker reads ahead."""
    timeout_seconds: PositiveInt = 300
    """Timeout of a rank's wait for its next batch, with workers, after which it names the shard and
    stops; and of its wait for another process of its node to copy a shard."""
    damage: Literal["stop", "skip"] = "stop"
    """Reaction to a damaged shard or sample: stop ends the run; skip records its samples and
    replaces them by samples of the same data set that depend on the position only."""
    max_consecutive_damaged: PositiveInt = 100
    """With damage=skip: number of consecutive damaged samples, in one replica's order, at which
    the run stops nevertheless."""
    max_damaged_fraction: Annotated[float, Range(above=0, at_most=1)] = 0.01
    """With damage=skip: share of damaged samples above which the run stops nevertheless."""
    cache_dir: LocalOutput | None = None
    """Cache folder for shards on this node's own disk, shared by the node's ranks. Remote shards
    need one; null reads local shards in place."""
    cache_bytes: PositiveInt = 64 << 30
    """Size of the cache, bytes; the least recently used shards are evicted."""
    max_attempts: PositiveInt = 5
    """Attempts to copy a shard into the cache before the run stops."""
