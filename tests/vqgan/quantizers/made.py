"""Inputs of quantizers for the tests of this folder."""

import torch
from torch import Tensor


def grid(rows: list[list[float]]) -> Tensor:
    """One row of positions: [1, embedding, 1, positions]."""
    return torch.tensor(rows).t()[None, :, None, :]


def random_grid(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
