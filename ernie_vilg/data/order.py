"""Which sample stands at which position of the endless training sequence.

The order is arithmetic, not state: `locate(position)` depends on the seed, the manifest and
the position alone. World size, worker count and the tensor and pipeline layout do not enter,
so any number of ranks resumes exactly where another stopped, and the whole data state of a
checkpoint is one integer.

An epoch visits every sample once. Its shards are put in random order and cut into blocks of
a few neighbours; within a block all samples are shuffled together. A reader therefore needs
only one block of shards at hand, and reads each shard once per epoch.

Source: ours. The idea of a global sample index in place of iterator state is that of
MosaicML Streaming; here it works over plain tars.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ernie_vilg.manifest import Manifest

_SHARD_STREAM = 0
_SAMPLE_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class SampleLocation:
    """Where one sample of the sequence is found."""

    epoch: int
    """How many times every sample came before."""
    shard_index: int
    """Index into the manifest's shards."""
    index: int
    """Index of the sample within its shard."""


class SampleOrder:
    """The random order of a data set's samples, epoch after epoch."""

    def __init__(self, manifest: Manifest, seed: int, shuffle_block_shards: int = 16) -> None:
        """Prepare the order.

        Args:
            manifest: the data set; must hold at least one sample.
            seed: names the order.
            shuffle_block_shards: shards whose samples are shuffled together; a reader keeps
                this many at hand.

        Raises:
            ValueError: the data set is empty.
        """
        self.num_samples = manifest.num_samples
        self.shuffle_block_shards = shuffle_block_shards
        self._sizes = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
        self._seed = seed
        if self.num_samples == 0:
            raise ValueError("the manifest holds no samples: build the shards again")
        # A block is met again at each of its positions, and two are alive at a border.
        self._shards_of_epoch = lru_cache(maxsize=2)(self._shuffle_shards)
        self._samples_of_block = lru_cache(maxsize=4)(self._shuffle_block)

    def locate(self, position: int) -> SampleLocation:
        """Return the sample at a position.

        Args:
            position: index into the endless sequence, from 0.
        """
        epoch, offset = divmod(position, self.num_samples)
        shards, block_starts = self._shards_of_epoch(epoch)
        block = int(np.searchsorted(block_starts, offset, side="right")) - 1
        shard_slots, indices = self._samples_of_block(epoch, block)
        within = offset - int(block_starts[block])
        return SampleLocation(
            epoch=epoch,
            shard_index=int(shards[shard_slots[within]]),
            index=int(indices[within]),
        )

    def _shuffle_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's shard order, and the offset at which each block starts."""
        shards = self._generator(_SHARD_STREAM, epoch, 0).permutation(len(self._sizes))
        samples_before = np.concatenate([[0], np.cumsum(self._sizes[shards])])
        return shards, samples_before[:-1][:: self.shuffle_block_shards]

    def _shuffle_block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return slot into the epoch's shard order and index in the shard, per block offset."""
        shards, _ = self._shards_of_epoch(epoch)
        first = block * self.shuffle_block_shards
        slots = np.arange(first, min(first + self.shuffle_block_shards, len(shards)))
        sizes = self._sizes[shards[slots]]
        order = self._generator(_SAMPLE_STREAM, epoch, block).permutation(int(sizes.sum()))
        shard_slots = np.repeat(slots, sizes)[order]
        indices = np.concatenate([np.arange(size) for size in sizes])[order]
        return shard_slots, indices

    def _generator(self, stream: int, epoch: int, block: int) -> np.random.Generator:
        # Philox is counter based: streams of different keys are independent, and the bits
        # are the same on every machine.
        sequence = np.random.SeedSequence([self._seed, stream, epoch, block])
        return np.random.Generator(np.random.Philox(sequence))
