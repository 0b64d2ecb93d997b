"""The order of samples: each position of the endless training sequence names one.

The order is arithmetic, not state: `SampleOrder.locate(position)` depends on the seed, the manifest
and the position alone. World size, worker count and the tensor and pipeline layout have no part in
it, so any number of ranks resumes exactly where another number stopped, and the whole data state
of a checkpoint is one integer.

An epoch visits every sample once. Its shards are put in random order and cut into blocks of a few
neighbours; all samples of a block are shuffled together. A reader therefore needs one block of
shards open, and reads each shard once per epoch.

A quarantined or damaged sample is replaced by another, which its position chooses too. No other
position changes.

Source: MosaicML Streaming also keeps a global sample index in place of iterator state.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest

_SHARD_STREAM = 0
_SAMPLE_STREAM = 1
_REPLACEMENT_STREAM = 2
_LOCAL_REPLACEMENTS = 16
"""Attempts that draw a replacement from the position's own block, whose shards are open, before
the later ones draw from the whole data set."""


def batch_size(step: int, sizes: BatchSizes) -> int:
    """Return the number of samples of a step over all replicas.

    Args:
        step: from 1; step s is the update after which s steps have been made.
        sizes: samples of every step.
    """
    last = 0
    for stage in sizes.warmup:
        last += stage.steps
        if step <= last:
            return stage.global_batch_size
    return sizes.full


def first_position(step: int, sizes: BatchSizes) -> int:
    """Return the first position of a step's global batch: the number of samples before it.

    Args:
        step: from 1.
        sizes: samples of every step.
    """
    position, rest = 0, step - 1
    for stage in sizes.warmup:
        steps = min(rest, stage.steps)
        position, rest = position + steps * stage.global_batch_size, rest - steps
    return position + rest * sizes.full


@dataclass(frozen=True, kw_only=True)
class ReplicaSlice:
    """The positions of every step that one replica takes: one of equal runs of the global batch."""

    batch_sizes: BatchSizes
    """Samples of every step over all replicas."""
    data_rank: int
    """Index of this replica; its tensor and pipeline ranks read the same samples."""
    data_size: int
    """Number of replicas; divides every global batch."""

    def positions(self, step: int) -> np.ndarray:
        """Return this replica's positions of a step in order, int64 [samples].

        Args:
            step: from 1.
        """
        count = batch_size(step, self.batch_sizes) // self.data_size
        first = first_position(step, self.batch_sizes) + self.data_rank * count
        return np.arange(first, first + count, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class SampleLocation:
    """The place of one sample in its data set."""

    epoch: int
    """Number of complete epochs before the sample."""
    shard_index: int
    """Index into the manifest's shards."""
    index: int
    """Index of the sample within its shard."""


class SampleOrder:
    """The random order of a data set's samples, epoch after epoch."""

    def __init__(self, manifest: Manifest, seed: int, shuffle_block_shards: int = 16) -> None:
        """Prepare the order.

        Args:
            manifest: manifest of the data set; must hold at least one sample.
            seed: seed of the order.
            shuffle_block_shards: shards whose samples are shuffled together; a reader keeps
                this many open.

        Raises:
            InputError: the data set is empty.
        """
        self.num_samples = manifest.num_samples
        self.shuffle_block_shards = shuffle_block_shards
        self._sizes = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
        self._seed = seed
        if self.num_samples == 0:
            raise InputError("the manifest holds no samples: build the shards again")
        # A block is needed at each of its positions, and two blocks at once at a border.
        self._shards_of_epoch = lru_cache(maxsize=2)(self._shuffle_shards)
        self._samples_of_block = lru_cache(maxsize=4)(self._shuffle_block)

    def locate(self, position: int) -> SampleLocation:
        """Return the sample at a position.

        Args:
            position: index into the endless sequence, from 0.
        """
        (epoch,), (shard_index,), (index,) = self.locate_all(np.array([position]))
        return SampleLocation(epoch=int(epoch), shard_index=int(shard_index), index=int(index))

    def locate_all(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the samples at some positions.

        Args:
            positions: indices into the endless sequence, from 0, in any order, int64 [samples].

        Returns:
            the fields of `SampleLocation` in their order, int64 [samples] each.
        """
        epochs, offsets = np.divmod(positions, self.num_samples)
        blocks = np.empty_like(epochs)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            blocks[rows] = self._block_at(int(epoch), offsets[rows])
        shard_indices, indices = np.empty_like(epochs), np.empty_like(epochs)
        for epoch, block in {*zip(epochs.tolist(), blocks.tolist(), strict=True)}:
            rows = (epochs == epoch) & (blocks == block)
            shards, starts = self._shards_of_epoch(epoch)
            slots, indices_in_shard = self._samples_of_block(epoch, block)
            within = offsets[rows] - starts[block]
            shard_indices[rows] = shards[slots[within]]
            indices[rows] = indices_in_shard[within]
        return epochs, shard_indices, indices

    def replacement(self, position: int, attempt: int) -> SampleLocation:
        """Return the sample that replaces the unusable one at a position.

        Args:
            position: position of the unusable sample.
            attempt: from 0; one more where the replacement is unusable too.
        """
        epoch, offset = divmod(position, self.num_samples)
        first, count = 0, self.num_samples
        if attempt < _LOCAL_REPLACEMENTS:
            _, starts = self._shards_of_epoch(epoch)
            block = int(self._block_at(epoch, np.array([offset]))[0])
            first = int(starts[block])
            end = int(starts[block + 1]) if block + 1 < len(starts) else self.num_samples
            count = end - first
        draw = int(self._generator(_REPLACEMENT_STREAM, position, attempt).integers(count))
        return self.locate(epoch * self.num_samples + first + draw)

    def shards_of_next_block(self, position: int) -> list[int]:
        """Return the shards of the block after the one that holds a position."""
        epoch, offset = divmod(position, self.num_samples)
        _, starts = self._shards_of_epoch(epoch)
        block = int(self._block_at(epoch, np.array([offset]))[0]) + 1
        if block == len(starts):
            epoch, block = epoch + 1, 0
        shards, _ = self._shards_of_epoch(epoch)
        first = block * self.shuffle_block_shards
        return [int(shard) for shard in shards[first : first + self.shuffle_block_shards]]

    def _block_at(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Return the block that holds each offset into an epoch, int64 [samples]."""
        _, starts = self._shards_of_epoch(epoch)
        return np.searchsorted(starts, offsets, side="right") - 1

    def _shuffle_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's shard order, and the offset at which each block starts."""
        shards = self._generator(_SHARD_STREAM, epoch, 0).permutation(len(self._sizes))
        samples_before = np.concatenate([[0], np.cumsum(self._sizes[shards])])
        return shards, samples_before[:-1][:: self.shuffle_block_shards]

    def _shuffle_block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return slot into the epoch's shard order and index in the shard, per block offset."""
        shards, _ = self._shards_of_epoch(epoch)
        first = block * self.shuffle_block_shards
        slots = np.arange(
            first, min(first + self.shuffle_block_shards, len(shards)), dtype=np.int32
        )
        sizes = self._sizes[shards[slots]]
        order = self._generator(_SAMPLE_STREAM, epoch, block).permutation(int(sizes.sum()))
        shard_slots = np.repeat(slots, sizes)[order]
        indices = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])[order]
        return shard_slots, indices

    def _generator(self, stream: int, epoch: int, block: int) -> np.random.Generator:
        # Philox is counter based: streams of different keys are independent, and the bits
        # are the same on every machine.
        sequence = np.random.SeedSequence([self._seed, stream, epoch, block])
        return np.random.Generator(np.random.Philox(sequence))
