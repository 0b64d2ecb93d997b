"""Codebook usage of drawn pictures, which is low when a model collapses.

Source: perplexity as in VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ernie_vilg.vqgan.quantizers.usage import codebook_usage


def code_figures(codes: Sequence[Tensor], codebook_size: int) -> dict[str, float]:
    """Summarise the codes of some pictures.

    A few pictures cannot use a large codebook, so compare drawn pictures with as many true ones.

    Args:
        codes: codes of each picture, int64 [grid, grid]; at least one picture.
        codebook_size: number of codes in the codebook.

    Returns:
        "codebook_usage", the fraction of the codebook that is used at all; "perplexity", the number
        of equally frequent codes that would carry as much information; "code_entropy", its
        logarithm in nats.
    """
    counts = torch.bincount(torch.stack(list(codes)).flatten(), minlength=codebook_size)
    usage, perplexity = codebook_usage(counts)
    return {
        "codebook_usage": usage,
        "perplexity": perplexity,
        "code_entropy": math.log(perplexity),
    }
