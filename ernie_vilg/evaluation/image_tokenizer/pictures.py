"""Pictures of image shards in their order, cut to one size; a few of them again by their place.

Memory holds one shard's index and a few batches, whatever the number of pictures. A picture that
cannot be read is skipped, counted and named.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipelines.encoding.encoder import decode_ahead
from ernie_vilg.data.batches.pictures import fetch_picture
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import LocalFolder, OpenShard, open_shard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import read_manifest

_MOST_NAMED = 20


class Place(NamedTuple):
    """Place of a picture in a folder of shards."""

    shard: int
    """Index of the shard in the manifest."""
    sample: int
    """Index of the sample in the shard."""


@dataclass(frozen=True, kw_only=True)
class PictureBatch:
    """Some consecutive pictures."""

    pixels: Tensor
    """The pictures, uint8 [batch, 3, size, size]."""
    places: list[Place]
    """Place of each."""


class ShardPictures:
    """The pictures of a folder."""

    def __init__(self, folder: Path, *, image_size: int, limit: int | None = None) -> None:
        """Read the manifest.

        Args:
            folder: folder of image shards.
            image_size: pixels per side of the central squares that are read.
            limit: number of pictures, the first ones; None: all.

        Raises:
            InputError: the manifest is missing or of another kind, or the pictures are too small
                or fewer than the limit.
        """
        self._folder = folder
        self._size = image_size
        self.manifest = read_manifest(folder, "image")
        """Manifest of the folder."""
        self._source_size = int(self.manifest.settings["image_size"])
        if self._source_size < image_size:
            raise InputError(
                f"shards={folder} holds pictures of {self._source_size} pixels a side where the "
                f"image tokenizer takes {image_size}: name shards that were built with an "
                f"image_size of at least {image_size}"
            )
        if limit is not None and limit > self.manifest.num_samples:
            raise InputError(
                f"pictures={limit} where shards={folder} holds {self.manifest.num_samples}: ask "
                "for fewer, or set pictures=null for all"
            )
        self.count = limit or self.manifest.num_samples
        """Number of pictures, those included that turn out to be damaged."""
        self.num_damaged = 0
        """Number of pictures so far that could not be read."""
        self.damaged: list[str] = []
        """The first of them, each with its reason."""

    def batches(self, batch_size: int, *, num_threads: int) -> Iterator[PictureBatch]:
        """Yield all pictures, decoded by threads ahead of their use.

        Args:
            batch_size: pictures per batch, at most.
            num_threads: number of threads.

        Raises:
            InputError: a shard is missing or differs from the manifest.
        """
        left = self.count
        for number, shard in enumerate(self.manifest.shards):
            if left == 0:
                return
            opened = open_shard(LocalFolder(str(self._folder)), shard)
            with closing(opened.file):
                count = min(left, shard.samples)
                yield from self._batches_of(opened, number, count, batch_size, num_threads)
            left -= count

    def at(self, places: list[Place]) -> tuple[Tensor, list[str]]:
        """Return pictures that `batches` has yielded, and their keys.

        Args:
            places: places, in any order; at least one.

        Returns:
            uint8 [places, 3, size, size], and the samples' keys.
        """
        pixels = np.empty((len(places), self._size, self._size, 3), np.uint8)
        keys = [""] * len(places)
        for number in sorted({place.shard for place in places}):
            folder = LocalFolder(str(self._folder))
            # Its content was checked when it was read the first time.
            shard = self.manifest.shards[number]
            opened = open_shard(folder, shard, with_content=shard.index is None)
            with closing(opened.file):
                for row, place in enumerate(places):
                    if place.shard == number:
                        self._decode(opened, place.sample, pixels[row])
                        keys[row] = opened.key(place.sample)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), keys

    def _batches_of(
        self, opened: OpenShard, number: int, count: int, batch_size: int, num_threads: int
    ) -> Iterator[PictureBatch]:
        failed: dict[int, str] = {}

        def decode(index: int, pixels: np.ndarray) -> None:
            try:
                self._decode(opened, index, pixels)
            except DamagedSampleError as error:
                failed[index] = str(error)

        batches = decode_ahead(
            decode,
            count,
            image_size=self._size,
            batch_size=batch_size,
            num_threads=num_threads,
            pin_memory=False,
        )
        for batch in batches:
            good = [index for index in batch.indices if index not in failed]
            self._note([failed[index] for index in batch.indices if index in failed])
            if good:
                rows = torch.tensor(good) - batch.indices.start
                yield PictureBatch(
                    pixels=batch.pixels[rows].permute(0, 3, 1, 2),
                    places=[Place(number, index) for index in good],
                )

    def _decode(self, opened: OpenShard, index: int, pixels: np.ndarray) -> None:
        if (problem := opened.problem(index)) is not None:
            raise problem
        picture = fetch_picture(opened, index).decode(self._source_size)
        first = (self._source_size - self._size) // 2
        part = slice(first, first + self._size)
        pixels[:] = picture[:, part, part].transpose(1, 2, 0)

    def _note(self, reasons: list[str]) -> None:
        self.num_damaged += len(reasons)
        self.damaged += reasons[: _MOST_NAMED - len(self.damaged)]
