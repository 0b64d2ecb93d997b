"""The interface of all quantizers.

A quantizer changes nothing in its forward pass: what training needs beside gradients, the sums of
an averaged codebook, is returned, summed over micro-batches and ranks by the caller, and applied
only if the step is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Generator, Tensor, nn

MeanOverRanks = Callable[[Tensor], Tensor]
"""Function that returns the mean of a tensor over all ranks, the same on each. Its gradient is that
of the identity, because gradients are averaged over ranks afterwards."""


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

    codes_are_outputs: ClassVar[bool] = True
    """Whether codes lie among encoder outputs, so that they start and are revived there."""

    def __init__(self) -> None:
        super().__init__()
        self.mean_over_ranks: MeanOverRanks | None = None
        """Mean over ranks for terms of the loss that need it; None on a single rank."""

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
        """Return the codes of encoder outputs, int64 [batch, grid, grid], without noise.

        Args:
            vectors: encoder outputs, float [batch, embedding, grid, grid].
        """

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

    def to_code_space(self, rows: Tensor) -> Tensor:
        """Return vectors as codes are compared with them, float32 [rows, embedding]."""
        return rows

    @property
    def code_parameter(self) -> nn.Parameter | None:
        """Parameter whose row i belongs to code i alone; None if gradients move no such rows.

        When codes are set, an optimizer must forget its moments of their rows.
        """
        return None

    def update(self, statistics: Tensor, is_made: Tensor) -> None:
        """Move the codes by the sums of a whole step; nothing where gradients alone move them.

        Args:
            statistics: sum of `Quantized.statistics` over micro-batches and ranks.
            is_made: whether the step is made, bool []; without it nothing changes.
        """
