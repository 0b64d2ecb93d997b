"""Pictures after the image tokenizer alone: the upper limit of everything drawn with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from ernie_vilg.vqgan.loss import psnr

_LARGEST_PSNR = 99.0  # JSON knows no infinity


class ImageCoder(Protocol):
    """A model that turns pictures into codes and back, such as `ErnieVilg`."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the codes of pictures, int64 [batch, grid, grid]."""

    def decode_images(self, codes: Tensor) -> Sequence[Image.Image]:
        """Return the pictures of codes."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Pictures after encoding and decoding."""

    images: tuple[Image.Image, ...]
    """Decoded pictures in the order of the originals."""
    num_codes: int
    """Number of different codes that the pictures use."""


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


def psnr_of_pictures(originals: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels of all pictures, at most 99.

    Args:
        originals: pictures.
        others: as many, each of its original's size.
    """
    errors = [
        np.square(_pixels(original) - _pixels(other))
        for original, other in zip(originals, others, strict=True)
    ]
    mean = float(np.mean(np.concatenate([error.ravel() for error in errors])))
    return min(psnr(mean, peak=255.0), _LARGEST_PSNR)


def _pixels(image: Image.Image) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.asarray(image.convert("RGB"), np.float32)
