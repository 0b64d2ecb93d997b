"""Image shards to batches of pictures: what the image tokenizer is trained on.

A batch is a pure function of its step: it holds consecutive positions of the sample order, from
`sequence.order.first_position` on. Each rank has a contiguous share of them, and the shares side by
side are the same batch for every number of ranks.

Where a picture is cut and whether it is mirrored is drawn by its position too. Pictures of shards
that are larger than asked for are cut at a random place; to be evaluated, all are cut at the
centre and none is mirrored.

Source: ours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ernie_vilg.data.batches.pictures import EncodedPicture, Pictures, fetch_picture
from ernie_vilg.data.batches.token_batches import Share
from ernie_vilg.data.batches.workers import OnWait, PrefetchedSteps
from ernie_vilg.data.sequence.sample_reader import Places, PositionReader, SampleSequence
from ernie_vilg.data.shards.damage import DamageAccount, DamagedSampleError, DamageFinding
from ernie_vilg.data.shards.open_shards import OpenShard

_AUGMENTATION_STREAM = 4
"""Beside the streams of `ernie_vilg.data.sequence.order` and `ernie_vilg.data.sequence.mixture`."""


@dataclass(frozen=True, kw_only=True)
class ImageSequence(SampleSequence):
    """A sequence of pictures of one size."""

    image_size: int
    """Pixels per side; at most those of the shards."""
    horizontal_flip: bool
    """Whether every other picture, by chance, is mirrored for training."""
    cache_bytes: int = 0
    """Memory for decoded pictures of the shards, per reader."""


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """The pictures of some positions."""

    pictures: Pictures
    """uint8 [pictures, 3, height, width]."""
    places: Places
    """Where they come from."""
    findings: tuple[DamageFinding, ...]
    """Damage that was met on the way, each finding once."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which part of a shard's picture is taken, and how."""

    top: int
    """First row, pixels."""
    left: int
    """First column, pixels."""
    is_mirrored: bool
    """Whether left and right change places."""

    def of(self, picture: Pictures, size: int) -> Pictures:
        """Return the part with this many pixels a side, as a view of the picture."""
        part = picture[:, self.top : self.top + size, self.left : self.left + size]
        return part[:, :, ::-1] if self.is_mirrored else part


def training_cut(sequence: ImageSequence, position: int, spare: int) -> Cut:
    """Draw how the picture at a position is cut for training.

    Args:
        sequence: says what is drawn.
        position: names the draw, together with the sequence's seed.
        spare: pixels per side that the shard's picture has too many.
    """
    if spare == 0 and not sequence.horizontal_flip:
        return Cut(top=0, left=0, is_mirrored=False)
    named = np.random.SeedSequence([sequence.seed, _AUGMENTATION_STREAM, position])
    # All three at any rate, so that a picture is cut alike whether or not some are mirrored.
    draws = np.random.Generator(np.random.Philox(named)).random(3)
    top, left = (draws[:2] * (spare + 1)).astype(int).tolist()
    return Cut(top=top, left=left, is_mirrored=sequence.horizontal_flip and bool(draws[2] < 0.5))


def centre_cut(spare: int) -> Cut:
    """Return the cut that leaves the centre; argument as `training_cut`."""
    return Cut(top=spare // 2, left=spare // 2, is_mirrored=False)


class ImageReader:
    """Reads pictures by their positions."""

    def __init__(
        self, sequence: ImageSequence, on_wait: Callable[[str], None] = lambda what: None
    ) -> None:
        """Open nothing yet.

        Args:
            sequence: what stands where.
            on_wait: told what is being waited for before each wait for a shard, and "" after.

        Raises:
            InputError: a location cannot be read with these settings.
        """
        self._sequence = sequence
        self._samples = PositionReader(sequence, on_wait)
        self._cache = _PictureCache(sequence.cache_bytes)

    def read(self, positions: np.ndarray, *, for_training: bool) -> ImageRows:
        """Read the pictures of some positions.

        Args:
            positions: of the training sequence, int64 [pictures], increasing.
            for_training: whether cuts are drawn; otherwise they are at the centre.

        Raises:
            DamagedShardError, DamagedSampleError: with `loader.damage=stop`, a shard differs from
                its manifest, or a picture cannot be used.
            InputError: no usable picture was found for a position.
            OSError: a shard cannot be read.
        """
        decoder = _PictureDecoder(self._sequence, self._cache, positions, for_training)
        places, findings = self._samples.read(positions, decoder)
        return ImageRows(pictures=decoder.pictures, places=places, findings=findings)

    def close(self) -> None:
        """Close every file and end every thread."""
        self._samples.close()


@dataclass(frozen=True, kw_only=True)
class ImageStep:
    """One rank's pictures of one step."""

    pictures: Tensor
    """uint8 [pictures, 3, height, width]."""
    places: Places
    """Where they come from."""
    findings: tuple[DamageFinding, ...]
    """Damage that was met."""

    def pin_memory(self) -> "ImageStep":
        """Return the same in pinned memory, from which a GPU copies while it computes."""
        return ImageStep(
            pictures=self.pictures.pin_memory(), places=self.places, findings=self.findings
        )


class ImageBatches:
    """One rank's share of every batch, read ahead by workers where there are any."""

    def __init__(
        self,
        sequence: ImageSequence,
        share: Share,
        *,
        known_damage: tuple[DamageFinding, ...] = (),
        on_damage: Callable[[list[DamageFinding]], object] = lambda findings: None,
        pin_memory: bool = False,
    ) -> None:
        """Prepare to read.

        Args:
            sequence: which picture stands where, and how it is read.
            share: this rank's positions.
            known_damage: damage found before, which counts towards the limits.
            on_damage: called with damage that is found new.
            pin_memory: whether batches are in pinned memory.
        """
        self._share = share
        self._sequence = sequence
        self._on_damage = on_damage
        self._account = DamageAccount(sequence.damage_limits, known_damage)
        self._steps = PrefetchedSteps(
            partial(_ImageSteps, sequence, share), sequence.loader, pin_memory=pin_memory
        )
        self._evaluation_reader: ImageReader | None = None

    def at(self, step: int) -> Tensor:
        """Return this rank's pictures of a step, uint8 [batch / ranks, 3, height, width].

        Args:
            step: from 1. Steps in order are read ahead.

        Raises:
            InputError: a shard differs from the manifest, or a picture from its size in it; or,
                with `loader.damage=skip`, too many do.
            TimeoutError: reading stalls; the message names the shard.
            RuntimeError: a worker died.
        """
        item = self._steps.at(step)
        self._enter(item.findings, item.places)
        return item.pictures

    def for_evaluation(self, first_position: int, count: int) -> Tensor:
        """Return pictures as they are, cut at the centre, uint8 [count, 3, height, width].

        Args:
            first_position: of the training sequence.
            count: consecutive positions.

        Raises:
            InputError: as `at`.
        """
        if self._evaluation_reader is None:
            self._evaluation_reader = ImageReader(self._sequence)
        positions = np.arange(first_position, first_position + count, dtype=np.int64)
        rows = self._evaluation_reader.read(positions, for_training=False)
        self._enter(rows.findings, rows.places)
        return torch.from_numpy(rows.pictures)

    def close(self) -> None:
        """End the workers and close every file."""
        self._steps.close()
        if self._evaluation_reader is not None:
            self._evaluation_reader.close()
            self._evaluation_reader = None

    def _enter(self, findings: tuple[DamageFinding, ...], places: Places) -> None:
        new = self._account.add(findings, places.is_damaged)
        if new:
            self._on_damage(new)


class _ImageSteps:
    """Reads one rank's share of steps, in a worker or in the rank itself."""

    def __init__(self, sequence: ImageSequence, share: Share, on_wait: OnWait) -> None:
        self._share = share
        self._reader = ImageReader(sequence, on_wait)

    def at(self, step: int) -> ImageStep:
        rows = self._reader.read(self._share.positions(step), for_training=True)
        return ImageStep(
            pictures=torch.from_numpy(rows.pictures), places=rows.places, findings=rows.findings
        )

    def close(self) -> None:
        self._reader.close()


_Place = tuple[int, str, int]
"""Data set, shard's file, index in the shard."""


class _PictureCache:
    """Decoded pictures, as many as fit."""

    def __init__(self, max_bytes: int) -> None:
        self._pictures: dict[_Place, Pictures] = {}
        self._bytes_left = max_bytes

    def get(self, place: _Place) -> Pictures | None:
        return self._pictures.get(place)

    def add(self, place: _Place, picture: Pictures) -> None:
        # Kept until full, then never replaced: an epoch visits every sample once, so the one
        # used longest ago is the next to come.
        if picture.nbytes <= self._bytes_left and place not in self._pictures:
            self._bytes_left -= picture.nbytes
            self._pictures[place] = np.ascontiguousarray(picture)


@dataclass(frozen=True, kw_only=True)
class _Fetched:
    """A picture on its way to its row."""

    place: _Place
    encoded: EncodedPicture | None
    """None where the picture is in the cache."""
    image_size: int
    """Pixels per side in its data set."""


class _PictureDecoder:
    """Reads the pictures of one batch."""

    def __init__(
        self,
        sequence: ImageSequence,
        cache: _PictureCache,
        positions: np.ndarray,
        for_training: bool,
    ) -> None:
        size = sequence.image_size
        self.pictures: Pictures = np.empty((len(positions), 3, size, size), np.uint8)
        self._sequence = sequence
        self._cache = cache
        self._positions = positions
        self._for_training = for_training
        self._fetched: dict[int, _Fetched] = {}

    def fetch(self, data_set: int, opened: OpenShard, indices: list[int], rows: list[int]) -> None:
        settings = self._sequence.sources[data_set].manifest.settings
        for row, index in zip(rows, indices, strict=True):
            place = (data_set, opened.shard.file, index)
            is_at_hand = self._cache.get(place) is not None
            self._fetched[row] = _Fetched(
                place=place,
                encoded=None if is_at_hand else fetch_picture(opened, index),
                image_size=int(settings["image_size"]),
            )

    def decode(self, rows: list[int]) -> Mapping[int, DamagedSampleError]:
        failed = {}
        size = self._sequence.image_size
        for row in rows:
            fetched = self._fetched.pop(row)
            try:
                picture = self._decode(fetched)
            except DamagedSampleError as error:
                failed[row] = error
                continue
            self.pictures[row] = self._cut(row, fetched.image_size - size).of(picture, size)
        return failed

    def _decode(self, fetched: _Fetched) -> Pictures:
        if fetched.encoded is None:
            picture = self._cache.get(fetched.place)
            assert picture is not None, "what is in the cache stays there"
            return picture
        picture = fetched.encoded.decode(fetched.image_size)
        self._cache.add(fetched.place, picture)
        return picture

    def _cut(self, row: int, spare: int) -> Cut:
        if self._for_training:
            return training_cut(self._sequence, int(self._positions[row]), spare)
        return centre_cut(spare)
