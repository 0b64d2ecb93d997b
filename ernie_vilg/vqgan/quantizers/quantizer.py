"""The interface of all quantizers.

A quantizer changes nothing in its forward pass: what training needs beside gradients, the sums of
an averaged codebook, is returned, summed over micro-batches and ranks by the caller, and applied
only if the step is made.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Generator, Tensor, nn


class Quantized(NamedTuple):
    """Result of quantizing a grid of vectors."""

    vectors: Tensor
    """Vectors of the chosen codes, float32 [batch, embedding, grid, grid], with the gradient that
    the rule gives the encoder."""
    codes: Tensor
    """Indices of the chosen codes, int64 [batch, grid, grid]."""
    losses: dict[str, Tensor]
    """Terms of the loss by name, each multiplied by its weight, mean over the batch, float32 []."""
    statistics: Tensor | None
    """Sums from which `Quantizer.update` moves the codes, float32, without gradient; None where
    gradients alone move them. Sums of two halves of a batch add up to those of the whole."""


class Quantizer(nn.Module, ABC):
    """Rule by which a vector becomes a code, and a code a vector."""

    @abstractmethod
    def forward(
        self, vectors: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Quantized:
        """Quantize encoder outputs in training.

        Args:
            vectors: encoder outputs, float [batch, embedding, grid, grid].
            progress: fraction of the run that is done, for schedules.
            generator: source of noise, on the vectors' device; only quantizers with noise need it.
        """

    @abstractmethod
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the codes of encoder outputs, int64 [batch, grid, grid], without noise."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors [batch, embedding, grid, grid] of codes int64 [batch, grid, grid]."""

    @abstractmethod
    def code_vectors(self) -> Tensor:
        """Return the vector of every code, float32 [codebook, embedding]."""

    @abstractmethod
    def set_codes(self, indices: Tensor, rows: Tensor) -> None:
        """Set the vectors of some codes, to start or to revive them.

        Args:
            indices: codes, int64 [count].
            rows: encoder outputs, float32 [count, embedding].
        """

    def update(self, statistics: Tensor, is_made: Tensor) -> None:
        """Move the codes by the sums of a whole step; nothing where gradients alone move them.

        Args:
            statistics: sum of `Quantized.statistics` over micro-batches and ranks.
            is_made: whether the step is made, bool []; without it nothing changes.
        """
