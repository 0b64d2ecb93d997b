"""Attention masks: the slots that each slot may attend to.

Every sequence is laid out as `[text slots | image slots]` in both directions; only the mask tells
source from target. A target slot sees the whole source, itself and the target slots before it. A
source slot sees all source slots. Sparse layers restrict attention among image slots to a row, a
column or a square, and never restrict text. Padded text slots have learned embeddings of their own
and are visible like text. So no mask depends on a sample, and all masks are known before the first
batch.

Source: the sequence-to-sequence mask of UniLM (arXiv:1905.03197) and the sparse patterns of
DALL-E (arXiv:2102.12092, appendix B.1), as ERNIE-ViLG uses both (arXiv:2112.15283, section
3.1.2); the fixed slots are ours.
"""

from enum import Enum, IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig


class Direction(IntEnum):
    """Source and target of a sequence. The value is the index of the direction dimension."""

    TEXT_TO_IMAGE = 0
    IMAGE_TO_TEXT = 1


class Pattern(Enum):
    """The image slots that an image slot may attend to."""

    FULL = "full"
    ROW = "row"
    COLUMN = "column"
    CONVOLUTION = "convolution"


def pattern_of_block(config: ModelConfig, block_index: int) -> Pattern:
    """Return the pattern of a block, counted from 1 as in DALL-E.

    With sparse attention, the last block has the convolution pattern, blocks whose index modulo 4
    is 2 the column pattern, and all others the row pattern.
    """
    if config.attention == "full":
        return Pattern.FULL
    if block_index == config.num_layers:
        return Pattern.CONVOLUTION
    return Pattern.COLUMN if block_index % 4 == 2 else Pattern.ROW


def is_visible(
    config: ModelConfig, pattern: Pattern, direction: Direction, query: Tensor, key: Tensor
) -> Tensor:
    """Return whether query slots may attend to key slots; all masks of all kernels come from here.

    Args:
        config: the model's shape.
        pattern: the block's pattern.
        direction: the direction, which decides the target modality.
        query: slots that attend, int64, any shape.
        key: slots that are attended to, int64, of a shape that broadcasts with `query`'s.

    Returns:
        bool, of the broadcast shape.
    """
    query_is_text, key_is_text = query < config.text_length, key < config.text_length
    in_pattern = _in_pattern(
        config, pattern, direction, query - config.text_length, key - config.text_length
    )
    is_past = key <= query
    if direction is Direction.TEXT_TO_IMAGE:
        return key_is_text | (~query_is_text & is_past & in_pattern)
    return (query_is_text & (~key_is_text | is_past)) | (~query_is_text & ~key_is_text & in_pattern)


def _in_pattern(
    config: ModelConfig, pattern: Pattern, direction: Direction, query: Tensor, key: Tensor
) -> Tensor:
    """Return whether image slots see image slots, given their positions in raster order."""
    grid = config.image_grid_size
    if pattern is Pattern.ROW:
        if direction is Direction.TEXT_TO_IMAGE and config.row_pattern == "raster":
            return query - key <= grid
        return query // grid == key // grid
    if pattern is Pattern.COLUMN:
        return query % grid == key % grid
    if pattern is Pattern.CONVOLUTION:
        radius = config.convolution_size // 2
        rows = query // grid - key // grid
        columns = query % grid - key % grid
        return (rows.abs() <= radius) & (columns.abs() <= radius)
    return query == query  # all true, in the shape of the queries


@lru_cache(maxsize=16)  # blocks of one pattern share their mask
def both_masks(config: ModelConfig, pattern: Pattern = Pattern.FULL) -> Tensor:
    """Return the dense masks of both directions, bool [direction, query, key], on the CPU."""
    # The device is named so that a model built on the meta device has real masks.
    slots = torch.arange(config.seq_length, device="cpu")
    return torch.stack(
        [
            is_visible(config, pattern, direction, slots[:, None], slots[None, :])
            for direction in Direction
        ]
    )
