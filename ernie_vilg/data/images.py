"""Image shards to batches of pictures: what the image tokenizer is trained on.

A batch is a pure function of its step: step s holds positions s * batch to (s + 1) * batch - 1
of the sample order, and each rank its contiguous share of them, so that the ranks' shares side
by side are the same batch for every number of ranks.

Source: ours.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ernie_vilg.data.order import SampleOrder
from ernie_vilg.data.reader import KEY, Sample, ShardCache
from ernie_vilg.manifest import Manifest

READABLE_FORMATS = ("JPEG", "PNG")

Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class ImageBatches:
    """One rank's share of every batch, decoded, and kept in memory as far as it fits."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        order: SampleOrder,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        cache_bytes: int = 0,
    ) -> None:
        """Prepare to read.

        Args:
            folder: where the image shards are.
            manifest: the folder's manifest, of kind "image".
            order: of the samples.
            global_batch_size: pictures per step over all ranks, a multiple of `world_size`.
            rank: of this process.
            world_size: number of ranks.
            cache_bytes: memory for decoded pictures.
        """
        self._order = order
        self._image_size = int(manifest.settings["image_size"])
        self._shards = ShardCache(folder, manifest, max_shards=order.shuffle_block_shards)
        self._global_batch_size = global_batch_size
        self._share = global_batch_size // world_size
        self._rank = rank
        self._cache: dict[tuple[int, int], Pictures] = {}
        self._max_cached = cache_bytes // (3 * self._image_size**2)

    def at(self, step: int) -> Pictures:
        """Return this rank's pictures of a step, uint8 [batch / ranks, 3, height, width]."""
        return self.between(step * self._global_batch_size + self._rank * self._share, self._share)

    def between(self, first_position: int, count: int) -> Pictures:
        """Return the pictures of consecutive positions, uint8 [count, 3, height, width].

        Raises:
            ValueError: a shard differs from the manifest, or a picture from its size in it.
        """
        return np.stack([self._picture(first_position + offset) for offset in range(count)])

    def _picture(self, position: int) -> Pictures:
        location = self._order.locate(position)
        key = (location.shard_index, location.index)
        if key in self._cache:
            return self._cache[key]
        sample = self._shards.sample(*key)
        picture = decode_picture(sample, self._image_size)
        # Kept until full, then never replaced: an epoch visits every sample once, so the one
        # used longest ago is the next to come.
        if len(self._cache) < self._max_cached:
            self._cache[key] = picture
        return picture


def decode_picture(sample: Sample, image_size: int) -> Pictures:
    """Decode a sample's picture.

    Args:
        sample: with a member "png" or "jpg".
        image_size: pixels per side that it must have.

    Returns:
        uint8 [3, height, width].

    Raises:
        ValueError: the sample has no picture, or one of another size.
    """
    name = sample[KEY].decode()
    content = sample.get("png") or sample.get("jpg")
    if content is None:
        raise ValueError(f"sample {name!r} has no png or jpg: build the image shards again")
    with Image.open(io.BytesIO(content), formats=READABLE_FORMATS) as image:
        if image.size != (image_size, image_size):
            raise ValueError(
                f"sample {name!r} has {image.width} x {image.height} pixels where the manifest "
                f"says {image_size} x {image_size}: build the image shards again"
            )
        pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
