"""PDQ, a hash of 256 bits that changes little when a picture is resized or recompressed.

The grey picture is blurred by two passes of a box filter along rows and columns (a tent filter),
sampled at 64 x 64 points, and transformed by a discrete cosine transform (DCT), of which 16 x 16
low frequencies stay, without the constant one. A bit says whether its frequency lies above the
median of all; half of the bits are set, so that distances are even numbers.

Blur and sampling are linear and separable: a sample is a weighted sum of a few rows and columns, so
only 64 rows are ever blurred along the other side. The weights are whole numbers, and sums of rows
are exact. What follows is in float64 and rounded once, so that the hash does not depend on the
matrix library; a picture of one colour has the hash 0.

Source: Facebook's PDQ (ThreatExchange, "The TMK+PDQF Video-Hashing Algorithm and the PDQ
Image-Hashing Algorithm", 2019); the arrangement as weighted sums is ours.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUM_BITS = 256
_SAMPLES, _FREQUENCIES = 64, 16
_MIN_SIDE = 5
"""Smallest side of a picture that has a hash, pixels."""
_LUMA = np.array([0.299, 0.587, 0.114, 0.0])
"""Shares of red, green, blue and padding in the brightness."""
_STEPS = 1 << 20
"""Steps per grey level that coefficients are rounded to: coarse beside errors of float64, fine
beside what tells two coefficients apart."""
_MAX_QUALITY, _GRADIENTS_PER_QUALITY = 100, 90
_PIXELS_AT_ONCE = 1 << 19
"""Most pixels that are copied at once; larger pictures are read in strips."""
_SAMPLES_PER_STRIP = 8


def pdq_hash(image: Image.Image) -> tuple[NDArray[np.uint64], int]:
    """Hash a picture.

    Args:
        image: RGB, upright, of any size; it is not reduced first.

    Returns:
        the hash, uint64 [4], most significant bits first, and its quality from 0 (flat) to 100:
        how much neighbouring samples differ. A side below 5 pixels gives 0 and 0.
    """
    if min(image.size) < _MIN_SIDE:
        return np.zeros(4, dtype=np.uint64), 0
    samples = _samples(image)
    transform = _transform()
    steps = np.rint(transform @ samples @ transform.T * _STEPS).ravel()
    middle = NUM_BITS // 2 - 1
    bits = steps[::-1] > np.partition(steps, middle)[middle]
    return np.packbits(bits).view(">u8").astype(np.uint64), _quality(samples)


def hamming_distances(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Return how many bits differ, uint16 [...], between hashes, uint64 [..., 4]."""
    counts = np.bitwise_count(left ^ right)  # uint8; a sum over an axis of 4 is slow
    total = counts[..., 0].astype(np.uint16)
    for word in range(1, 4):
        total += counts[..., word]
    return total


def hex_of_hash(words: NDArray[np.uint64]) -> str:
    """Return a hash, uint64 [4], as 64 hexadecimal digits."""
    return "".join(f"{int(word):016x}" for word in words)


def hash_of_hex(digits: str) -> NDArray[np.uint64]:
    """Return the hash, uint64 [4], of 64 hexadecimal digits."""
    return np.frombuffer(bytes.fromhex(digits), dtype=">u8").astype(np.uint64)


@dataclass(frozen=True, kw_only=True)
class _Blur:
    """Weights of the samples along one side: `weights[i]` are those of pixels from `starts[i]`."""

    starts: NDArray[np.int64]
    weights: NDArray[np.int64]  # [64, taps]
    total: int  # of the weights of each sample


@lru_cache(maxsize=64)
def _blur(length: int) -> _Blur:
    """Return the weights of two passes of a box filter, sampled at 64 points of a side.

    The filter's window has 1/128 of the side, rounded up; where it has an even number of pixels,
    one more of them lies after the centre than before. At the end of the side it is cut short.
    """
    window = -(-length // (2 * _SAMPLES))
    before, after = (window - 1) // 2, window // 2
    centres = ((np.arange(_SAMPLES) + 0.5) * length / _SAMPLES).astype(np.int64)
    starts = centres - 2 * before
    taps = 2 * window - 1
    passed = centres[:, None] + np.arange(-before, after + 1)  # centres of the first pass
    ends = np.minimum(passed + after + 1, length)
    counts = ends - (passed - before)
    total = window * window * (window if window == 1 else window - 1)
    edges = np.zeros((_SAMPLES, taps + 1), dtype=np.int64)
    share = total // (window * counts)
    sample = np.arange(_SAMPLES)[:, None]
    np.add.at(edges, (sample, passed - before - starts[:, None]), share)
    np.add.at(edges, (sample, ends - starts[:, None]), -share)
    return _Blur(starts=starts, weights=edges.cumsum(axis=1)[:, :taps], total=total)


@lru_cache(maxsize=64)
def _columns(width: int) -> NDArray[np.float64]:
    """Return the blur along rows as a matrix, float64 [width, 64]."""
    blur = _blur(width)
    taps = blur.weights.shape[1]
    matrix = np.zeros((width + taps, _SAMPLES))
    positions = blur.starts[:, None] + np.arange(taps)
    matrix[positions, np.arange(_SAMPLES)[:, None]] = blur.weights / blur.total
    return matrix[:width]


@lru_cache(maxsize=1)
def _transform() -> NDArray[np.float64]:
    """Return the DCT of frequencies 1 to 16 as a matrix, float64 [16, 64]."""
    frequency = np.arange(1, _FREQUENCIES + 1)[:, None]
    position = 2 * np.arange(_SAMPLES) + 1
    cosines: NDArray[np.float64] = np.cos(np.pi / (2 * _SAMPLES) * frequency * position)
    return cosines * np.sqrt(2 / _SAMPLES)


def _samples(image: Image.Image) -> NDArray[np.float64]:
    """Return the blurred brightness at 64 x 64 points, 0 to 255."""
    rows = _blur(image.height)
    if rows.total == 1:
        sums = _pixels(image, 0, image.height)[rows.starts].astype(np.float64)
    else:
        sums = _sums_of_rows(image, rows)
    if image.width <= 2 * _SAMPLES:
        grey = sums[:, _blur(image.width).starts] @ _LUMA
    else:
        grey = (sums @ _LUMA) @ _columns(image.width)
    return grey / rows.total


def _sums_of_rows(image: Image.Image, rows: _Blur) -> NDArray[np.float64]:
    """Return the weighted sums of rows of pixels, float64 [64, width, 4], all whole numbers."""
    # float32 holds whole numbers up to 2^24.
    exact = np.float32 if rows.total * 255 < 1 << 24 else np.float64
    weights = rows.weights.astype(exact)
    sums = np.empty((_SAMPLES, image.width * 4))
    is_small = image.width * image.height <= _PIXELS_AT_ONCE
    step = _SAMPLES if is_small else _SAMPLES_PER_STRIP
    for first in range(0, _SAMPLES, step):
        last = first + step - 1
        top = int(rows.starts[first])
        bottom = min(int(rows.starts[last]) + weights.shape[1], image.height)
        strip = _pixels(image, top, bottom).reshape(bottom - top, -1)
        for sample in range(first, last + 1):
            start = rows.starts[sample] - top
            block = strip[start : start + weights.shape[1]].astype(exact)
            sums[sample] = np.dot(weights[sample, : len(block)], block)
    return sums.reshape(_SAMPLES, image.width, 4)


def _pixels(image: Image.Image, top: int, bottom: int) -> NDArray[np.uint8]:
    """Return rows of a picture with a padding byte, uint8 [rows, width, 4]."""
    rows = image.crop((0, top, image.width, bottom)) if bottom - top < image.height else image
    # As Pillow stores it; three bytes per pixel would take ten times as long.
    content = rows.tobytes("raw", "RGBX")
    return np.frombuffer(content, dtype=np.uint8).reshape(bottom - top, image.width, 4)


def _quality(samples: NDArray[np.float64]) -> int:
    """Return a hash's quality: the differences of neighbouring samples in whole per cent, added."""
    grey = samples.astype(np.float32)
    gradients = [
        np.abs(np.trunc(np.diff(grey, axis=axis) * np.float32(100) / np.float32(255))).sum()
        for axis in (0, 1)
    ]
    return min(int(sum(gradients)) // _GRADIENTS_PER_QUALITY, _MAX_QUALITY)
