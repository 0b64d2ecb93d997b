"""Entropy term: each choice of a code shall be sure, and all codes equally frequent.

With soft choices p by distance, it is the mean entropy of p less the entropy of the mean of p over
the whole batch, all ranks together. That mean does not split into parts per rank, therefore it
takes a function that averages over ranks.

Source: MAGVIT-2 (Yu et al. 2023, arXiv:2310.05737), with the squared distances of MaskGIT's
tokenizer (arXiv:2202.04200).
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ernie_vilg.vqgan.quantizers.distances import (
    MAX_TABLE_ELEMENTS,
    rows_per_table,
    squared_distances,
)
from ernie_vilg.vqgan.quantizers.quantizer import MeanOverRanks


def entropy_loss(
    rows: Tensor,
    codebook: Tensor,
    temperature: float,
    mean_over_ranks: MeanOverRanks | None = None,
    *,
    max_elements: int = MAX_TABLE_ELEMENTS,
) -> Tensor:
    """Return the entropy per choice less that of all choices, in nats, float32 [].

    Ranks must hold equally many rows. Choices are computed part by part and again in the backward
    pass, so that memory does not grow with the table of all rows and codes.

    Args:
        rows: encoder outputs of this rank, float32 [rows, embedding].
        codebook: vectors of the codes, float32 [codes, embedding].
        temperature: scale of squared distances; a choice is softmax(-distance / temperature).
        mean_over_ranks: mean over ranks; None on a single rank.
        max_elements: largest number of distances to hold at a time.
    """
    choices, entropies = codebook.new_zeros(len(codebook)), codebook.new_zeros(())
    for chunk in rows.split(rows_per_table(len(codebook), max_elements)):
        sums: tuple[Tensor, Tensor] = checkpoint(
            _sums, chunk, codebook, temperature, use_reentrant=False, preserve_rng_state=False
        )
        choices, entropies = choices + sums[0], entropies + sums[1]
    mean = choices / len(rows)
    if mean_over_ranks is not None:
        mean = mean_over_ranks(mean)
    # A code that no row is near has probability 0, where the logarithm has no finite gradient.
    logarithm = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    return entropies / len(rows) + (mean * logarithm).sum()


def _sums(rows: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the sum of the choices [codes] and of their entropies [] over rows."""
    logarithms = (-squared_distances(rows, codebook) / temperature).log_softmax(dim=1)
    choices = logarithms.exp()
    return choices.sum(dim=0), -(choices * logarithms).sum()
