"""How much of the codebook drawn pictures use: a model that collapses draws few codes.

Source: ours; perplexity as in VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ernie_vilg.vqgan.quantizer import codebook_usage


def code_figures(codes: Sequence[Tensor], codebook_size: int) -> dict[str, float]:
    """Summarise the codes of some pictures.

    Few pictures cannot use a large codebook: hold the figures of drawn ones against those of as
    many true ones.

    Args:
        codes: of each picture, int64 [grid, grid]; at least one picture.
        codebook_size: number of codes that there are.

    Returns:
        "codebook_usage", the share of the codebook that is used at all; "perplexity", the number
        of codes that, evenly used, would carry as much information; "code_entropy", its logarithm
        in nats.
    """
    counts = torch.bincount(torch.stack(list(codes)).flatten(), minlength=codebook_size)
    usage, perplexity = codebook_usage(counts)
    return {
        "codebook_usage": usage,
        "perplexity": perplexity,
        "code_entropy": math.log(perplexity),
    }
