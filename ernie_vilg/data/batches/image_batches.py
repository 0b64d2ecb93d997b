"""Image shards become batches of pictures, on which the image tokenizer is trained.

A batch is a pure function of its step, as for tokens: side by side, the slices of all ranks are the
same batch for every number of ranks.

The position of a picture also chooses where it is cut and whether it is mirrored. Pictures that are
larger than asked for are cut at a random place for training; for evaluation all are cut at the
centre and none is mirrored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ernie_vilg.data.batches.pictures import EncodedPicture, Pictures, fetch_picture
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.sample_reader import Origins, SampleReader
from ernie_vilg.data.sequence.sample_sequence import NewRows, SampleSequence
from ernie_vilg.data.shards.damage import DamagedSampleError, DamageFinding
from ernie_vilg.data.shards.open_shards import OpenShard

_AUGMENTATION_STREAM = 4
"""Random stream of cuts; `data.sequence.order` and `data.sequence.mixture` have 0 to 3."""


@dataclass(frozen=True, kw_only=True)
class ImageSequence(SampleSequence[Tensor]):
    """A sequence of pictures of one size; uint8 [pictures, 3, height, width]."""

    image_size: int
    """Pixels per side; at most those of the shards."""
    horizontal_flip: bool
    """Mirror every other picture, at random, for training."""
    for_training: bool = True
    """Draw cuts at random; otherwise all are at the centre."""
    cache_bytes: int = 0
    """Memory for decoded pictures of the shards, per reader."""

    def row_maker(self) -> NewRows[Tensor]:
        """Return the constructor of a reader's rows, which share a cache."""
        return partial(PictureRows, self, _PictureCache(self.cache_bytes))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The square of a shard's picture that is used, and its orientation."""

    top: int
    """First row, pixels."""
    left: int
    """First column, pixels."""
    is_mirrored: bool
    """True if left and right change places."""

    def of(self, picture: Pictures, size: int) -> Pictures:
        """Return the square with `size` pixels per side, as a view of the picture."""
        part = picture[:, self.top : self.top + size, self.left : self.left + size]
        return part[:, :, ::-1] if self.is_mirrored else part


def cut_at(sequence: ImageSequence, position: int, spare: int) -> Cut:
    """Return the cut of the picture at a position.

    Args:
        sequence: the training sequence, with the settings of cuts.
        position: seed of the draw, together with the sequence's seed.
        spare: pixels per side by which the shard's picture is larger than the cut.
    """
    if not sequence.for_training:
        return Cut(top=spare // 2, left=spare // 2, is_mirrored=False)
    if spare == 0 and not sequence.horizontal_flip:
        return Cut(top=0, left=0, is_mirrored=False)
    seeds = np.random.SeedSequence([sequence.seed, _AUGMENTATION_STREAM, position])
    # Always all three, so that horizontal_flip does not change where a picture is cut.
    draws = np.random.Generator(np.random.Philox(seeds)).random(3)
    top, left = (draws[:2] * (spare + 1)).astype(int).tolist()
    return Cut(top=top, left=left, is_mirrored=sequence.horizontal_flip and bool(draws[2] < 0.5))


class ImageBatches:
    """One rank's pictures of every step, and pictures for evaluation."""

    def __init__(
        self,
        sequence: ImageSequence,
        replica: ReplicaSlice,
        *,
        known_damage: tuple[DamageFinding, ...] = (),
        on_damage: Callable[[list[DamageFinding]], object] = lambda findings: None,
        on_origins: Callable[[int, Origins], object] = lambda step, origins: None,
        pin_memory: bool = False,
    ) -> None:
        """Prepare to read.

        Args:
            sequence: the training sequence.
            replica: this rank's positions.
            known_damage: damage found before, which counts towards the limits.
            on_damage: called with new findings.
            on_origins: called with each step and the origins of its pictures.
            pin_memory: whether pictures are in pinned memory.

        Raises:
            InputError: the shards cannot be read with these settings.
        """
        self._sequence = sequence
        self._on_origins = on_origins
        self._steps = StepSamples(
            sequence,
            replica,
            known_damage=known_damage,
            on_damage=on_damage,
            pin_memory=pin_memory,
        )
        self._evaluation_reader: SampleReader[Tensor] | None = None

    def at(self, step: int) -> Tensor:
        """Return this rank's pictures of a step, uint8 [batch / ranks, 3, height, width].

        Args:
            step: from 1. Steps in order are read ahead.

        Raises:
            InputError, TimeoutError, RuntimeError: as `StepSamples.at`.
        """
        samples = self._steps.at(step)
        self._on_origins(step, samples.origins)
        return samples.content

    @property
    def doing(self) -> str:
        """Activity of the workers, with the shards they wait for; any thread may ask."""
        return self._steps.doing

    def for_evaluation(self, first_position: int, count: int) -> Tensor:
        """Return pictures cut at the centre, uint8 [count, 3, height, width].

        Args:
            first_position: first position of the training sequence.
            count: number of consecutive positions.

        Raises:
            InputError: as `at`.
        """
        if self._evaluation_reader is None:
            self._evaluation_reader = SampleReader(replace(self._sequence, for_training=False))
        positions = np.arange(first_position, first_position + count, dtype=np.int64)
        return self._steps.account_for(self._evaluation_reader.read(positions)).content

    def close(self) -> None:
        """End the workers and close every file."""
        self._steps.close()
        if self._evaluation_reader is not None:
            self._evaluation_reader.close()
            self._evaluation_reader = None


_PictureKey = tuple[int, str, int]
"""Data set, file of the shard, index in the shard."""


class _PictureCache:
    """As many decoded pictures as fit."""

    def __init__(self, max_bytes: int) -> None:
        self._pictures: dict[_PictureKey, Pictures] = {}
        self._bytes_left = max_bytes

    def get(self, key: _PictureKey) -> Pictures | None:
        return self._pictures.get(key)

    def add(self, key: _PictureKey, picture: Pictures) -> None:
        # A full cache evicts nothing: an epoch visits every sample once, so the least recently
        # used picture is the next to come.
        if picture.nbytes <= self._bytes_left and key not in self._pictures:
            self._bytes_left -= picture.nbytes
            self._pictures[key] = np.ascontiguousarray(picture)


@dataclass(frozen=True, kw_only=True)
class _Fetched:
    """A picture between fetch and decode."""

    key: _PictureKey
    encoded: EncodedPicture | None
    """Bytes of the picture; None where the cache has it decoded."""
    image_size: int
    """Pixels per side in its data set."""


class PictureRows:
    """The pictures of some positions, while samples are decoded into them."""

    def __init__(
        self, sequence: ImageSequence, cache: _PictureCache, positions: np.ndarray
    ) -> None:
        """Allocate the array.

        Args:
            sequence: the training sequence.
            cache: decoded pictures of the reader.
            positions: positions of the rows, which choose the cuts.
        """
        size = sequence.image_size
        self._pictures: Pictures = np.empty((len(positions), 3, size, size), np.uint8)
        self._sequence = sequence
        self._cache = cache
        self._positions = positions
        self._fetched: dict[int, _Fetched] = {}

    def fetch(self, data_set: int, opened: OpenShard, indices: list[int], rows: list[int]) -> None:
        """Read the bytes of one shard's pictures that the cache does not have."""
        settings = self._sequence.sources[data_set].manifest.settings
        for row, index in zip(rows, indices, strict=True):
            key = (data_set, opened.shard.file, index)
            is_cached = self._cache.get(key) is not None
            self._fetched[row] = _Fetched(
                key=key,
                encoded=None if is_cached else fetch_picture(opened, index),
                image_size=int(settings["image_size"]),
            )

    def decode(self, rows: list[int]) -> Mapping[int, DamagedSampleError]:
        """Decode and cut the fetched pictures; return the error of each unusable row."""
        failed = {}
        size = self._sequence.image_size
        for row in rows:
            fetched = self._fetched.pop(row)
            try:
                picture = self._decode(fetched)
            except DamagedSampleError as error:
                failed[row] = error
                continue
            cut = cut_at(self._sequence, int(self._positions[row]), fetched.image_size - size)
            self._pictures[row] = cut.of(picture, size)
        return failed

    def content(self) -> Tensor:
        """Return the pictures; the array is not copied."""
        return torch.from_numpy(self._pictures)

    def _decode(self, fetched: _Fetched) -> Pictures:
        if fetched.encoded is None:
            picture = self._cache.get(fetched.key)
            assert picture is not None, "the cache evicts nothing"
            return picture
        picture = fetched.encoded.decode(fetched.image_size)
        self._cache.add(fetched.key, picture)
        return picture
