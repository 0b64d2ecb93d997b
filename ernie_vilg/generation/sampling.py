"""Sampling of one token from its logits.

Source: temperature 1 is DALL-E's (arXiv:2102.12092), which ERNIE-ViLG follows (section 4.2);
top-k sampling is Fan et al. 2018 (arXiv:1805.04833).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Rule by which a token is chosen."""

    temperature: float = 0.0
    """Divisor of the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Number of likeliest tokens to sample from; 0 is all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:  # NaN passes every other comparison
            raise InputError(f"temperature={self.temperature}: must be 0 (greedy) or above")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k}: must be 0 (all tokens) or above")


def choose_tokens(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Choose one token per sequence.

    Args:
        logits: float [batch, vocab].
        sampling: rule of the choice.
        uniforms: one number per sequence, float64 [batch] in [0, 1): the position of its token in
            the cumulative distribution.

    Returns:
        ids, int64 [batch], and their log-probabilities in nats under the model itself (at
        temperature 1 and without top-k), float32 [batch].
    """
    logits = logits.float()
    log_probabilities = logits.log_softmax(dim=-1)
    if sampling.temperature == 0:
        ids = logits.argmax(dim=-1)
    else:
        ids = _draw(logits / sampling.temperature, sampling.top_k, uniforms)
    return ids, log_probabilities.gather(1, ids[:, None])[:, 0]


def _draw(logits: Tensor, top_k: int, uniforms: Tensor) -> Tensor:
    if 0 < top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, float("-inf"))
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    ids = (cumulative <= uniforms.to(logits.device)[:, None] * total).sum(dim=-1)
    # The product may round up to the total, and no token lies beyond that.
    last = (cumulative < total).sum(dim=-1)
    return torch.minimum(ids, last)
