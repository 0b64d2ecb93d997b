"""Decoding of pictures larger than a network was trained on, tile by tile, in bounded memory.

All tiles have one size and overlap; their pictures are joined with weights that rise from a tile's
edge inwards. If a decoder is local, each tile carries enough neighbours to draw its middle exactly,
and only that part counts. Otherwise norms and attention see one tile instead of the whole picture:
the tile has the size of the training's pictures, so that they see what they know, and neighbours
fade into each other.

Source: ours; fading tiles are common practice, such as in the autoencoders of diffusers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig

_LOCAL_CORE = 16
"""Least number of codes per side that a tile of a local decoder draws exactly."""


class Tiling(NamedTuple):
    """How a grid of codes is cut. All numbers are codes along one side."""

    size: int
    """Side of a tile."""
    margin: int
    """Width of a tile's edge that is drawn but does not count."""
    fade: int
    """Width over which a tile's weight rises after its margin."""

    @property
    def stride(self) -> int:
        """Distance of neighbouring tiles."""
        return self.size - 2 * self.margin - self.fade


def tiling_of(config: ImageTokenizerConfig) -> Tiling:
    """Return the tiles that fit an architecture."""
    if is_local(config):
        margin = decoder_radius(config)
        return Tiling(size=max(config.grid_size, 2 * margin + _LOCAL_CORE), margin=margin, fade=0)
    return Tiling(size=config.grid_size, margin=0, fade=config.grid_size // 4)


def is_local(config: ImageTokenizerConfig) -> bool:
    """Return whether each pixel of the decoder depends on near codes only."""
    attends = config.middle_attention or len(config.attention_resolutions) > 0
    return config.normalization != "group" and not attends


def decoder_radius(config: ImageTokenizerConfig) -> int:
    """Return the distance in codes beyond which no code changes a pixel of a local decoder."""
    radius = 1  # the last convolution, in positions of the finest resolution
    for level in range(len(config.channel_multipliers)):
        radius += 2 * (config.num_residual_blocks + 1)
        if level < len(config.channel_multipliers) - 1:
            radius = (radius + 1 + 1) // 2  # the convolution after doubling, then half, rounded up
    return radius + 4 + 1  # the two blocks in the middle, and the first convolution


def decode_in_tiles(
    decode: Callable[[Tensor], Tensor], codes: Tensor, tiling: Tiling, factor: int
) -> Tensor:
    """Draw a grid of any size.

    Memory beyond the picture is that of one tile.

    Args:
        decode: draws codes int64 [batch, rows, columns] as float32 [batch, 3, height, width].
        codes: int64 [batch, rows, columns].
        tiling: how to cut the grid.
        factor: pixels per code along one side.

    Returns:
        pictures, float32 [batch, 3, rows * factor, columns * factor].
    """
    batch, *sides = codes.shape
    height, width = (side * factor for side in sides)
    total = torch.zeros(batch, 3, height, width, device=codes.device)
    weights = torch.zeros(height, width, device=codes.device)
    for top in starts(sides[0], tiling):
        rows = slice(top, top + tiling.size)
        for left in starts(sides[1], tiling):
            columns = slice(left, left + tiling.size)
            weight = (
                _ramp(rows, sides[0], tiling, factor)[:, None]
                * _ramp(columns, sides[1], tiling, factor)[None, :]
            ).to(codes.device)
            drawn = decode(codes[:, rows, columns])
            place = (_pixels(rows, factor), _pixels(columns, factor))
            total[:, :, *place] += weight * drawn
            weights[place] += weight
    return total / weights


def starts(side: int, tiling: Tiling) -> list[int]:
    """Return the first code of each tile along a side of a grid."""
    last = max(0, side - tiling.size)
    return [*range(0, last, tiling.stride), last]


def _ramp(part: slice, side: int, tiling: Tiling, factor: int) -> Tensor:
    """Return the weights of a tile's pixels along one side, float32 [pixels]."""
    length = (min(part.stop, side) - part.start) * factor
    position = torch.arange(length) + 0.5
    inward = torch.full((length,), torch.inf)
    if part.start > 0:
        inward = torch.minimum(inward, position)
    if part.stop < side:
        inward = torch.minimum(inward, length - position)
    inward = inward - tiling.margin * factor
    if tiling.fade == 0:
        return (inward > 0).float()
    return (inward / (tiling.fade * factor)).clamp(0, 1)


def _pixels(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)
