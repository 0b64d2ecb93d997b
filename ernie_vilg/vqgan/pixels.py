"""The two forms of pixels: bytes in files and shards, numbers in [-1, 1] in every network.

Source: ours; [-1, 1] is what VQGAN (Esser et al. 2021, arXiv:2012.09841) works on.
"""

import torch
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
    """Return numbers as bytes, the nearest to each; what lies outside [-1, 1] is clamped.

    Args:
        pixels: float of any shape and precision.

    Returns:
        uint8 of the same shape.
    """
    # In float32: half precision cannot tell neighbouring bytes apart.
    return ((pixels.float().clamp(-1, 1) + 1) * _HALF_RANGE).round().to(torch.uint8)
