"""The training sequence: its data sets, their mixture and order, and how samples become arrays.

A `SampleSequence` decides which sample stands at which position. It is a value that travels to
worker processes. Its subclasses, one per kind of shards, say what the samples become.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.shards.damage import DamagedSampleError, DamageLimits
from ernie_vilg.data.shards.open_shards import OpenShard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest


class Content(Protocol):
    """Decoded samples: one tensor, or several in one object."""

    def pin_memory(self) -> "Content":
        """Return a copy in pinned memory, from which a GPU copies while it computes."""


ContentT = TypeVar("ContentT", bound=Content)
RowsContentT = TypeVar("RowsContentT", bound=Content, covariant=True)


class Rows(Protocol[RowsContentT]):
    """The arrays of some positions while samples are decoded into them.

    Row r belongs to the r-th position. Bytes are first fetched shard by shard, then decoded all at
    once.
    """

    def fetch(self, data_set: int, opened: OpenShard, indices: list[int], rows: list[int]) -> None:
        """Read the bytes of one shard's samples into these rows."""

    def decode(self, rows: list[int]) -> Mapping[int, DamagedSampleError]:
        """Decode the fetched bytes of these rows; return the error of each unusable row."""

    def content(self) -> RowsContentT:
        """Return the decoded rows; the arrays are not copied."""


NewRows = Callable[[np.ndarray], Rows[ContentT]]
"""Makes the rows of a batch, given its positions."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One data set of a run."""

    name: str
    """Name within the run: "main", or the key in data.mixture."""
    location: str
    """Folder or URL of the shards."""
    manifest: Manifest
    """Manifest of the shards."""


@dataclass(frozen=True, kw_only=True)
class SampleSequence(ABC, Generic[ContentT]):
    """Everything that decides which sample stands at a position, and how samples are read."""

    sources: tuple[DataSource, ...]
    """Data sets of the run."""
    mixture: tuple[MixtureSegment, ...]
    """Weights of the data sets; one segment draws from a single data set."""
    seed: int
    """Seed of the order."""
    shuffle_block_shards: int
    """Shards whose samples are shuffled together."""
    quarantine: Quarantine
    """Excluded samples."""
    loader: LoaderConfig
    """Settings of reading and of damage."""

    def __post_init__(self) -> None:
        if self.loader.cache_dir is None:
            return
        # An open shard keeps its place on the disk, also after the cache evicted it.
        needed = sum(
            sum(
                sorted(
                    sum(stored.bytes for stored in shard.files) for shard in source.manifest.shards
                )[-self.max_open :]
            )
            for source in self.sources
        )
        if needed > self.loader.cache_bytes:
            raise InputError(
                f"loader.cache_bytes={self.loader.cache_bytes} with shuffle_block_shards="
                f"{self.shuffle_block_shards}: this block's shards and the next one's have up to "
                f"{needed} bytes, allow that many, or shuffle fewer shards together"
            )

    @property
    def max_open(self) -> int:
        """Open shards per data set: two blocks, and a border between them."""
        return 2 * self.shuffle_block_shards + 2

    @property
    def damage_limits(self) -> DamageLimits:
        """Damage at which a reader of the sequence stops."""
        num_samples = sum(source.manifest.num_samples for source in self.sources)
        return DamageLimits(
            max_consecutive=self.loader.max_consecutive_damaged,
            max_samples=int(self.loader.max_damaged_fraction * num_samples),
        )

    @abstractmethod
    def row_maker(self) -> NewRows[ContentT]:
        """Return the constructor of a reader's rows; what batches share is made once, here."""
