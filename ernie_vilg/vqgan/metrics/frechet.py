"""Frechet distance of two sets of features, the FID if they are Inception's.

The distance of a set of reconstructions to their originals is called rFID.

Source: Heusel et al. 2017 (arXiv:1706.08500); covariance with n - 1, as in the reference
implementation and pytorch-fid. The trace of the covariances' root comes from symmetric
eigenvalue problems, which need no complex numbers and no small number on the diagonal.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ernie_vilg.errors import InputError

_SMALLEST_COUNT = 2


class FeatureMoments:
    """Mean and covariance of features, from sums over batches and ranks."""

    def __init__(self, num_features: int, device: torch.device) -> None:
        self._sum = torch.zeros(num_features, dtype=torch.float64, device=device)
        self._products = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)
        self._count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Count some pictures' features, float [batch, features]."""
        features = features.double()
        self._sum += features.sum(dim=0)
        self._products += features.T @ features
        self._count += len(features)

    def add_up(self, all_reduce: Callable[[Tensor], object]) -> None:
        """Replace the sums by those over all ranks.

        Args:
            all_reduce: function that replaces a tensor by its sum over ranks.
        """
        for sums in (self._sum, self._products, self._count):
            all_reduce(sums)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Return the mean, float64 [features], and the covariance, float64 [features, features].

        Raises:
            InputError: there are fewer than two pictures.
        """
        if self._count < _SMALLEST_COUNT:
            raise InputError(f"{int(self._count)} pictures: a covariance needs at least two")
        mean = self._sum / self._count
        covariance = self._products - self._count * torch.outer(mean, mean)
        return mean, covariance / (self._count - 1)


def frechet_distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Return the squared Frechet distance of two normal distributions.

    Args:
        one: mean, float64 [features], and covariance, float64 [features, features].
        other: the same of the other set.
    """
    (mean_one, covariance_one), (mean_other, covariance_other) = one, other
    # The root of AB has the trace of the root of A^0.5 B A^0.5, which is symmetric.
    values, vectors = torch.linalg.eigh(covariance_one)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    trace_of_root = torch.linalg.eigvalsh(root @ covariance_other @ root).clamp_min(0).sqrt().sum()
    distance = (
        (mean_one - mean_other).square().sum()
        + covariance_one.trace()
        + covariance_other.trace()
        - 2 * trace_of_root
    )
    return max(float(distance), 0.0)
