"""Which slots each slot may attend to.

Every sequence is laid out as `[text slots | image slots]`, whatever its direction; only the
mask tells source from target. Every source slot sees the whole source; every target slot
sees the whole source and the target slots up to its own. Text padding has a learned
embedding of its own per slot and is seen like text, so that no mask depends on a sample and
all masks are known before the first batch.

Source: the sequence-to-sequence mask of UniLM (arXiv:1905.03197), as ERNIE-ViLG uses it
(arXiv:2112.15283, section 3.1.2); the fixed slots are ours.
"""

from enum import IntEnum

import torch
from torch import Tensor


class Direction(IntEnum):
    """What is source and what is target. The value is the index of the direction dimension."""

    TEXT_TO_IMAGE = 0
    IMAGE_TO_TEXT = 1


def attention_mask(direction: Direction, text_length: int, num_image_tokens: int) -> Tensor:
    """Return the mask of visible slots.

    Args:
        direction: which modality is the target.
        text_length: text slots, the first of the sequence.
        num_image_tokens: image slots, the rest of the sequence.

    Returns:
        bool [query, key]; True where the query may attend to the key.
    """
    seq_length = text_length + num_image_tokens
    is_text = torch.arange(seq_length) < text_length
    is_source = is_text if direction is Direction.TEXT_TO_IMAGE else ~is_text
    causal = torch.ones(seq_length, seq_length, dtype=torch.bool).tril()
    target_sees_target = ~is_source[:, None] & ~is_source[None, :] & causal
    return is_source[None, :] | target_sees_target


def both_masks(text_length: int, num_image_tokens: int) -> Tensor:
    """Return the masks of both directions, bool [direction, query, key]."""
    return torch.stack(
        [attention_mask(direction, text_length, num_image_tokens) for direction in Direction]
    )
