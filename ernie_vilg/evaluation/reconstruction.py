"""How much of a picture survives the image tokenizer: the ceiling of everything drawn with it.

Source: ours; PSNR is 10 log10(255^2 / mean squared error), over all pixels of all pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor

_LARGEST_VALUE = 255.0
_LARGEST_PSNR = 99.0  # JSON knows no infinity


class ImageCoder(Protocol):
    """Turns pictures into codes and back; `ernie_vilg.generation.pipeline.ErnieVilg` is one."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the codes of pictures, int64 [batch, grid, grid]."""

    def decode_images(self, codes: Tensor) -> Sequence[Image.Image]:
        """Return the pictures of codes."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Pictures after encoding and decoding."""

    images: tuple[Image.Image, ...]
    """One per picture, in order."""
    num_codes: int
    """Different codes that these pictures use."""


def reconstruct(
    coder: ImageCoder, images: Sequence[Image.Image], *, batch_size: int
) -> Reconstruction:
    """Encode and decode pictures, `batch_size` at once."""
    decoded: list[Image.Image] = []
    used: set[int] = set()
    for start in range(0, len(images), batch_size):
        codes = coder.encode_images(images[start : start + batch_size])
        used.update(codes.unique().tolist())
        decoded.extend(coder.decode_images(codes))
    return Reconstruction(images=tuple(decoded), num_codes=len(used))


def psnr(originals: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Return the peak signal-to-noise ratio in dB, at most 99: equal pictures give that.

    Args:
        originals: pictures.
        others: as many, each of its original's size.
    """
    errors = [
        np.square(_pixels(original) - _pixels(other))
        for original, other in zip(originals, others, strict=True)
    ]
    mean = float(np.mean(np.concatenate([error.ravel() for error in errors])))
    ratio = _LARGEST_VALUE**2 / max(mean, 1e-9)
    return min(10 * math.log10(ratio), _LARGEST_PSNR)


def _pixels(image: Image.Image) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.asarray(image.convert("RGB"), np.float32)
