"""The nearest code by L2 distance, moved by averages of the encoder outputs that chose it.

A code is the average of the outputs that chose it, over about 1 / (1 - decay) steps; no gradient
and no optimizer touches it.

Source: appendix A.1 of VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937); Laplace smoothing of
the counts as in vector-quantize-pytorch.
"""

import torch
from torch import Tensor

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.vqgan.quantizers.nearest import NearestCodeQuantizer
from ernie_vilg.vqgan.quantizers.placement import sums_per_code

_SMOOTHING = 1.0e-5  # added to every count, so that no code divides by 0


class EMAQuantizer(NearestCodeQuantizer):
    """Codebook of vectors, float32 [codebook, embedding], that averages move.

    Averages are stored with the weights, so that training can go on from them.
    """

    has_codebook_loss = False

    codebook: Tensor
    average_counts: Tensor
    """Average number of outputs per step that chose a code, float32 [codebook]."""
    average_sums: Tensor
    """Average of the sums per step of these outputs, float32 [codebook, embedding]."""

    def __init__(self, codebook_size: int, embedding_size: int, config: CodebookConfig) -> None:
        super().__init__(config)
        self.register_buffer("codebook", torch.randn(codebook_size, embedding_size))
        self.register_buffer("average_counts", torch.ones(codebook_size))
        self.register_buffer("average_sums", self.codebook.clone())

    def code_vectors(self) -> Tensor:
        """Return the vector of every code, float32 [codebook, embedding]."""
        return self.codebook

    @torch.no_grad()
    def set_codes(self, indices: Tensor, rows: Tensor) -> None:
        """Set the vectors of some codes, and their averages as if one output had chosen each.

        Args:
            indices: codes, int64 [count].
            rows: encoder outputs, float32 [count, embedding].
        """
        self.codebook[indices] = rows
        self.average_counts[indices] = 1.0
        self.average_sums[indices] = rows

    @torch.no_grad()
    def update(self, statistics: Tensor, is_made: Tensor) -> None:
        """Move averages and codes by the sums of a whole step.

        Args:
            statistics: count and sum of the outputs per code, summed over micro-batches and ranks,
                float32 [codebook, 1 + embedding].
            is_made: whether the step is made, bool []; without it nothing changes.
        """
        decay = self.config.ema_decay
        counts = torch.lerp(self.average_counts, statistics[:, 0], 1 - decay)
        sums = torch.lerp(self.average_sums, statistics[:, 1:], 1 - decay)
        total = counts.sum()
        smoothed = (counts + _SMOOTHING) / (total + len(counts) * _SMOOTHING) * total
        # A step that holds NaN leaves no trace: where() reads no value that it does not choose.
        for buffer, value in (
            (self.average_counts, counts),
            (self.average_sums, sums),
            (self.codebook, sums / smoothed[:, None]),
        ):
            buffer.copy_(torch.where(is_made, value, buffer))

    def _statistics(self, rows: Tensor, codes: Tensor) -> Tensor:
        return sums_per_code(rows, codes, len(self.codebook))
