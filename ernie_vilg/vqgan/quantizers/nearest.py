"""The nearest code by L2 distance, moved by gradients.

Source: vector quantization, VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937).
"""

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.vqgan.quantizers.distances import flatten_grid, nearest_codes
from ernie_vilg.vqgan.quantizers.entropy import entropy_loss
from ernie_vilg.vqgan.quantizers.quantizer import Quantized, Quantizer
from ernie_vilg.vqgan.quantizers.straight_through import rotation_trick, straight_through


class NearestCodeQuantizer(Quantizer):
    """Quantizer whose code is the nearest one; where codes come from is left to others."""

    has_codebook_loss: ClassVar[bool] = True
    """Whether gradients move the codes."""

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def code_vectors(self) -> Tensor:
        """Return the vector of every code, float32 [codebook, embedding]."""

    def forward(
        self, vectors: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Quantized:
        """Replace each vector by its nearest code; without noise and schedules.

        Args:
            vectors: encoder outputs, float [batch, embedding, grid, grid].
            progress: unused.
            generator: unused.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            batch, _, height, width = vectors.shape
            # [batch * grid * grid, embedding]
            rows = self.to_code_space(flatten_grid(vectors.float()))
            codebook = self.code_vectors()
            codes = nearest_codes(rows, codebook)
            chosen = F.embedding(codes, codebook)
            is_rotated = self.config.straight_through == "rotation"
            passed = rotation_trick(rows, chosen) if is_rotated else straight_through(rows, chosen)
            return Quantized(
                vectors=passed.view(batch, height, width, -1).permute(0, 3, 1, 2),
                codes=codes.view(batch, height, width),
                losses=self._losses(rows, chosen, codebook),
                statistics=self._statistics(rows.detach(), codes),
            )

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the codes of encoder outputs, int64 [batch, grid, grid].

        Args:
            vectors: encoder outputs, float [batch, embedding, grid, grid].
        """
        batch, _, height, width = vectors.shape
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            rows = self.to_code_space(flatten_grid(vectors.float()))
            return nearest_codes(rows, self.code_vectors()).view(batch, height, width)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors [batch, embedding, grid, grid] of codes int64 [batch, grid, grid]."""
        with torch.autocast(codes.device.type, enabled=False):
            return F.embedding(codes, self.code_vectors()).permute(0, 3, 1, 2)

    def _losses(self, rows: Tensor, chosen: Tensor, codebook: Tensor) -> dict[str, Tensor]:
        config = self.config
        losses = {
            "commitment_loss": config.commitment_weight * F.mse_loss(rows, chosen.detach()),
        }
        if self.has_codebook_loss:
            losses["codebook_loss"] = config.codebook_weight * F.mse_loss(chosen, rows.detach())
        if config.entropy_weight > 0:
            losses["entropy_loss"] = config.entropy_weight * entropy_loss(
                rows, codebook, config.entropy_temperature, self.mean_over_ranks
            )
        return losses

    def _statistics(self, rows: Tensor, codes: Tensor) -> Tensor | None:
        """Return sums over rows [rows, embedding] and their codes [rows], or None."""
        return None


class NearestQuantizer(NearestCodeQuantizer):
    """Codebook of vectors, float32 [codebook, embedding], that gradients move."""

    def __init__(self, codebook_size: int, embedding_size: int, config: CodebookConfig) -> None:
        super().__init__(config)
        self.codebook = nn.Parameter(torch.randn(codebook_size, embedding_size))

    def code_vectors(self) -> Tensor:
        """Return the vector of every code, float32 [codebook, embedding]."""
        return self.codebook

    @property
    def code_parameter(self) -> nn.Parameter:
        """Codebook."""
        return self.codebook

    @torch.no_grad()
    def set_codes(self, indices: Tensor, rows: Tensor) -> None:
        """Set the vectors of some codes.

        Args:
            indices: codes, int64 [count].
            rows: encoder outputs, float32 [count, embedding].
        """
        self.codebook[indices] = self.to_code_space(rows)
