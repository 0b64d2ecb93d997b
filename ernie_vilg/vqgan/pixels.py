"""Conversion of pixels: bytes in files, shards and pictures, numbers in [-1, 1] in every network.

Source: the range of VQGAN (Esser et al. 2021, arXiv:2012.09841).
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_HALF_RANGE = 127.5


def from_bytes(pixels: Tensor) -> Tensor:
    """Return bytes as numbers: 0 becomes -1, 255 becomes 1.

    Args:
        pixels: uint8 of any shape and memory layout.

    Returns:
        float32 of the same shape and layout, in [-1, 1].
    """
    assert pixels.dtype == torch.uint8, pixels.dtype
    return pixels.float() / _HALF_RANGE - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Return the nearest byte of each number; numbers outside [-1, 1] are clamped.

    Args:
        pixels: float of any shape and precision.

    Returns:
        uint8 of the same shape.
    """
    # In float32: half precision cannot tell neighbouring bytes apart.
    return ((pixels.float().clamp(-1, 1) + 1) * _HALF_RANGE).round().to(torch.uint8)


def from_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """Return RGB pictures as numbers.

    Args:
        pictures: at least one, all of one size.

    Returns:
        float32 [batch, 3, height, width] in [-1, 1], channels last in memory.
    """
    pixels = np.stack([np.asarray(picture) for picture in pictures])  # [batch, height, width, 3]
    return from_bytes(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Return the RGB pictures of numbers, float [batch, 3, height, width] in [-1, 1]."""
    arrays = to_bytes(pixels).permute(0, 2, 3, 1).cpu().numpy()  # [batch, height, width, 3]
    return [Image.fromarray(array) for array in arrays]
