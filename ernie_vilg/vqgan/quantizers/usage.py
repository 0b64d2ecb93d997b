"""Figures of how evenly a codebook is used."""

import torch
from torch import Tensor


def codebook_usage(counts: Tensor) -> tuple[float, float]:
    """Return the fraction of used codes and the perplexity of their distribution.

    The perplexity is the number of equally frequent codes that would carry as much information.

    Args:
        counts: uses per code over a window and over all ranks, int64 [codebook].
    """
    total = int(counts.sum())
    if total == 0:
        return 0.0, 0.0
    frequency = counts.double() / total
    entropy = -torch.xlogy(frequency, frequency).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())
