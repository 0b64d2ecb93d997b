"""Pictures of one part: decoded once, judged, hashed, and stored as square ones.

The prepared pictures of a part stand one after another in one file of the work folder. Consecutive
rows of one picture share its decoding and its stored bytes.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from PIL import Image

from data_pipelines.curation.curator import VIEW_SIDE, Curator
from data_pipelines.duplicates.content_hashes import sha256_of_pixels
from data_pipelines.duplicates.pdq import pdq_hash
from data_pipelines.images import crop_and_resize, decode_image, image_bytes, is_animated
from data_pipelines.rejections import RejectedError
from data_pipelines.sources.rows import RawPair
from ernie_vilg.config.shards import BuildShardsConfig


@dataclass(kw_only=True)
class PreparedPicture:
    """One picture of the part."""

    picture_id: str
    columns: dict[str, Any] = field(default_factory=dict)
    """Values of the picture's columns in the metadata."""
    image: Image.Image | None = None
    """Picture of its own size, RGB; None where it was not decoded."""
    square: Image.Image | None = None
    """Picture as the samples hold it; None where the picture is rejected."""
    rejection: RejectedError | None = None
    """Reason why no row can use it."""
    is_stored: bool = False
    """Whether the columns say where its prepared bytes are."""

    def view(self) -> Image.Image:
        """Return the picture for models and thumbnails, at most VIEW_SIDE pixels a side."""
        assert self.image is not None
        return reduced(self.image, VIEW_SIDE)


class PartPictures:
    """Prepares the pictures of a part, and stores those that are kept."""

    def __init__(self, file: BinaryIO, curator: Curator, config: BuildShardsConfig) -> None:
        """Store prepared pictures in `file`, which is empty."""
        self._file = file
        self._curator = curator
        self._config = config
        deduplication = config.curation.deduplication
        # It takes as long as decoding the picture.
        self._has_pdq = (
            deduplication.near_pictures is not None
            or bool(deduplication.against)
            or config.hold_out_fraction > 0
        )
        self._offset = 0
        self._last: PreparedPicture | None = None

    def prepare(self, pair: RawPair) -> PreparedPicture:
        """Read, decode, judge and hash the picture of a row, unless the row before it has it."""
        last = self._last
        if last is None or last.picture_id != pair.picture_id:
            last = self._last = PreparedPicture(picture_id=pair.picture_id)
            try:
                self._prepare(pair, last)
            except RejectedError as error:
                last.rejection = error
        return last

    def _prepare(self, pair: RawPair, picture: PreparedPicture) -> None:
        content = pair.picture.read()
        image = picture.image = decode_image(
            content, pair.picture.name, max_pixels=self._config.max_image_pixels
        )
        animated, size = is_animated(content), self._config.image_size
        picture.columns.update(width=image.width, height=image.height, is_animated=animated)
        verdict = self._curator.check_picture(image, is_animated=animated)
        picture.columns.update(verdict.measures)
        if verdict.rejection is not None:
            raise verdict.rejection
        picture.square = crop_and_resize(image, size)
        picture.columns.update(
            pixels_sha256=sha256_of_pixels(image), is_enlarged=min(image.size) < size
        )
        if self._has_pdq:
            picture.columns.update(_pdq_columns(image))

    def store(self, picture: PreparedPicture) -> Mapping[str, Any]:
        """Store a prepared picture, once; return its columns."""
        if not picture.is_stored:
            assert picture.square is not None
            content = image_bytes(picture.square, self._config.image_format)
            self._file.write(content)
            picture.columns.update(
                picture_offset=self._offset,
                picture_bytes=len(content),
                picture_crc32=zlib.crc32(content),
            )
            self._offset += len(content)
            picture.is_stored = True
        return picture.columns


def reduced(image: Image.Image, side: int) -> Image.Image:
    """Return an image whose longer side is at most `side` pixels: itself, or a smaller copy."""
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    width, height = (max(1, round(extent * scale)) for extent in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _pdq_columns(image: Image.Image) -> dict[str, Any]:
    parts, quality = pdq_hash(image)
    return {**{f"pdq_{place}": part for place, part in enumerate(parts)}, "pdq_quality": quality}
