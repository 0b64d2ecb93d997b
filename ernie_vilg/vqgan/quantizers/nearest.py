"""Vector quantization, and the choice of codes for a codebook.

A code that is never the nearest gets no gradient and stays unused. Therefore the codebook starts on
encoder outputs that are far apart, and the same rule moves unused codes to the outputs that are
represented worst.

Source: vector quantization with straight-through gradients, VQ-VAE (van den Oord et al. 2017,
arXiv:1711.00937); choosing vectors by squared distance, k-means++ (Arthur and Vassilvitskii
2007).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """Result of quantizing a grid of vectors."""

    vectors: Tensor
    """Vectors of the nearest codes, float32 [batch, embedding, grid, grid]; their gradient reaches
    the encoder outputs unchanged."""
    codes: Tensor
    """Indices of the nearest codes, int64 [batch, grid, grid]."""
    codebook_loss: Tensor
    """Mean squared distance, with gradient to the codebook only, float32 []."""
    commitment_loss: Tensor
    """Mean squared distance, with gradient to the encoder only, float32 []."""


class VectorQuantizer(nn.Module):
    """Codebook of vectors, float32 [codebook, embedding]."""

    def __init__(self, codebook_size: int, embedding_size: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(codebook_size, embedding_size))

    def forward(self, vectors: Tensor) -> Quantized:
        """Replace each vector by its nearest code.

        Args:
            vectors: encoder outputs, float [batch, embedding, grid, grid].
        """
        vectors = vectors.float()
        codes = self.nearest(vectors)
        quantized = self.lookup(codes)
        return Quantized(
            vectors=vectors + (quantized - vectors).detach(),
            codes=codes,
            codebook_loss=F.mse_loss(quantized, vectors.detach()),
            commitment_loss=F.mse_loss(vectors, quantized.detach()),
        )

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the nearest codes by L2 distance, int64 [batch, grid, grid].

        It computes in float32: in bfloat16 rounding would decide near ties, and the codes of
        training would differ from those of the frozen tokenizer.

        Args:
            vectors: encoder outputs, float [batch, embedding, grid, grid].
        """
        batch, _, height, width = vectors.shape
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            rows = flatten_grid(vectors.float())  # [batch * grid * grid, embedding]
            codes = _squared_distances(rows, self.codebook).argmin(dim=1)
        return codes.view(batch, height, width)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors [batch, embedding, grid, grid] of codes int64 [batch, grid, grid]."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)


def flatten_grid(vectors: Tensor) -> Tensor:
    """Turn vectors [batch, embedding, grid, grid] into rows [batch * grid * grid, embedding]."""
    return vectors.permute(0, 2, 3, 1).flatten(0, 2)


def choose_spread_rows(
    rows: Tensor, count: int, generator: torch.Generator, *, codebook: Tensor | None = None
) -> Tensor:
    """Choose rows that are far from each other and from the codes that stay.

    Each row is drawn with a probability in proportion to its squared distance from the nearest
    vector chosen so far. Once every row is chosen, the rest are repeats.

    Args:
        rows: candidates, float32 [rows, embedding].
        count: number of rows to choose.
        generator: random generator on the rows' device.
        codebook: codes that stay, float32 [codes, embedding], or None.

    Returns:
        the chosen rows, float32 [count, embedding].
    """
    if codebook is None or len(codebook) == 0:
        distance = torch.full((len(rows),), torch.inf, device=rows.device)
    else:
        distance = _squared_distances(rows, codebook).amin(dim=1).clamp_min_(0)
    draws = torch.rand(count, generator=generator, device=rows.device)
    chosen = torch.empty(count, dtype=torch.int64, device=rows.device)
    for index in range(count):
        # While nothing is chosen, all rows are equally far: the first draw is uniform.
        weight = torch.where(distance.isinf(), 1.0, distance).double().cumsum(0)
        row = torch.searchsorted(weight, draws[index].double() * weight[-1], right=True)
        row = row.clamp_max(len(rows) - 1)
        chosen[index] = row
        distance = torch.minimum(distance, (rows - rows[row]).square().sum(dim=1))
    return rows[chosen]


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


def _squared_distances(rows: Tensor, codebook: Tensor) -> Tensor:
    """Return squared L2 distances, float32 [rows, codes]."""
    squares = rows.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
    return torch.addmm(squares, rows, codebook.t(), alpha=-2)
