"""How far usual alterations move the hashes of real pictures, and what the tables find of them."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.duplicates_parts.planted import THRESHOLD
from data_pipelines.duplicates.near_hashes import choose_tables, make_tables
from data_pipelines.duplicates.pdq import hamming_distances, pdq_hash
from ernie_vilg.data.batches.pictures import open_picture

_HASHES = 1_000_000
"""Number of hashes that the tables are chosen for."""


def _recompressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _resized(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def _cropped(image: Image.Image, share: float) -> Image.Image:
    left, top = round(image.width * share), round(image.height * share)
    return image.crop((left, top, image.width - left, image.height - top))


ALTERATIONS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 75": lambda image: _recompressed(image, 75),
    "JPEG, quality 30": lambda image: _recompressed(image, 30),
    "half the size": lambda image: _resized(image, 0.5),
    "twice the size": lambda image: _resized(image, 2),
    "1 % cropped on every side": lambda image: _cropped(image, 0.01),
    "3 % cropped on every side": lambda image: _cropped(image, 0.03),
}


@dataclass(frozen=True, kw_only=True)
class Altered:
    """Effect of one alteration on the hashes."""

    median_distance: float
    near: float
    """Share of pictures whose hash stays within the threshold."""
    found: float
    """Share of these whose hashes meet in a table."""


def measure_alterations(folder: Path, most: int) -> dict[str, Altered]:
    """Alter pictures and compare the hashes, by the tables that a million hashes have.

    Args:
        folder: folder of PNG, JPEG or WebP files.
        most: most pictures, at even distances.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".webp"))
    pictures = []
    for path in files[:: max(1, len(files) // most)]:
        with path.open("rb") as file:
            pictures.append(open_picture(file, lambda width, height: True))
    originals = np.stack([pdq_hash(picture)[0] for picture in pictures])
    tables = list(make_tables(choose_tables(_HASHES, _HASHES**2 // 2, THRESHOLD)))
    measured = {}
    for name, alter in ALTERATIONS.items():
        altered = np.stack([pdq_hash(alter(picture))[0] for picture in pictures])
        distances = hamming_distances(originals, altered)
        near = distances <= THRESHOLD
        meets = np.zeros(len(pictures), dtype=np.bool_)
        for table in tables:
            one, other = (table.entries(hashes, 0, len(hashes)) for hashes in (originals, altered))
            meets |= one == other
        measured[name] = Altered(
            median_distance=float(np.median(distances)),
            near=float(near.mean()),
            found=float(meets[near].mean()),
        )
    return measured
