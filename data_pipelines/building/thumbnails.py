"""Thumbnails of rejected pictures, for the people who judge the rules.

A hash of the row chooses them, so that they depend neither on the order of the rows nor on workers.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipelines.metadata import write_rows
from data_pipelines.rejections import RejectedError

THUMBNAIL_SIDE = 96
"""Longest side of a thumbnail, pixels."""
THUMBNAIL_COLUMNS = {"part": "INTEGER", "row": "INTEGER", "jpeg": "BLOB"}

_PER_REASON = 8
"""Thumbnails that a part keeps for each reason."""
_JPEG_QUALITY = 85


class Thumbnails:
    """The thumbnails of one part: for each reason those of the rows with the lowest hashes."""

    def __init__(self) -> None:
        """Begin without thumbnails."""
        self._rows: dict[str, list[tuple[str, int, int, bytes]]] = {}

    def offer(
        self, row: Mapping[str, Any], rejection: RejectedError, image: Image.Image | None
    ) -> None:
        """Keep the thumbnail of a rejected row if its hash is low enough.

        Args:
            row: its part and number.
            rejection: the reason.
            image: its picture; None where it was not decoded.
        """
        if image is None:
            return
        kept = self._rows.setdefault(str(rejection.reason), [])
        rank = example_rank(row["part"], row["row"])
        if len(kept) == _PER_REASON:
            if rank >= kept[-1][0]:
                return
            kept.pop()
        kept.append((rank, row["part"], row["row"], jpeg_of(image)))
        kept.sort()

    def write(self, path: Path) -> None:
        """Write the thumbnails as a Parquet file."""
        kept = [entry for entries in self._rows.values() for entry in entries]
        kept.sort(key=lambda entry: entry[1:3])
        rows = [dict(zip(THUMBNAIL_COLUMNS, entry[1:], strict=True)) for entry in kept]
        write_rows(path, rows, THUMBNAIL_COLUMNS)


def example_rank(part: int, row: int) -> str:
    """Return the hash by which a row is chosen as an example; the lowest are."""
    return hashlib.sha256(f"{part} {row}".encode()).hexdigest()


EXAMPLE_RANK_SQL = "sha256(concat(part, ' ', row))"
"""`example_rank` in DuckDB's SQL."""


def jpeg_of(image: Image.Image) -> bytes:
    """Return a thumbnail of an RGB image as a JPEG."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
