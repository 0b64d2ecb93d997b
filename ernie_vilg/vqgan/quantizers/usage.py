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


def codebook_figures(counts: Tensor) -> dict[str, float]:
    """Return the figures of a codebook's use.

    Args:
        counts: uses per code over a window and over all ranks, int64 [codebook].

    Returns:
        "codebook_usage", the fraction of used codes; "perplexity", the number of equally frequent
        codes that would carry as much information; "dead_codes", the number of unused codes.
    """
    usage, perplexity = codebook_usage(counts)
    return {
        "codebook_usage": usage,
        "perplexity": perplexity,
        "dead_codes": int((counts == 0).sum()),
    }
