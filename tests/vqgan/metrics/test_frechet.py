"""The Frechet distance equals closed forms."""

import pytest
import torch

from ernie_vilg.errors import InputError
from ernie_vilg.vqgan.metrics.frechet import FeatureMoments, frechet_distance

CPU = torch.device("cpu")


def diagonal(*variances: float) -> torch.Tensor:
    return torch.diag(torch.tensor(variances, dtype=torch.float64))


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_distance_of_independent_features() -> None:
    one = (vector(0.0, 1.0), diagonal(4.0, 9.0))
    other = (vector(3.0, 1.0), diagonal(1.0, 9.0))

    # Means: 9. Deviations: (2 - 1)^2 and 0.
    assert frechet_distance(one, other) == pytest.approx(10)


def test_distance_of_covariances_that_do_not_commute() -> None:
    # [[2, 1], [1, 2]] and diag(1, 4): AB has trace 10 and determinant 12, so its root has the trace
    # sqrt(10 + 2 sqrt(12)).
    one = (vector(0.0, 0.0), torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64))
    other = (vector(0.0, 0.0), diagonal(1.0, 4.0))

    expected = 4 + 5 - 2 * (10 + 2 * 12**0.5) ** 0.5
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(other, one) == pytest.approx(expected)


def test_distance_of_singular_covariances_is_finite() -> None:
    one = (vector(0.0, 0.0), diagonal(1.0, 0.0))

    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    features = torch.randn(9, 3, generator=torch.manual_seed(0), dtype=torch.float64) + 5
    parts = [FeatureMoments(3, CPU) for _ in range(2)]
    parts[0].add(features[:4])
    parts[1].add(features[4:7])
    parts[1].add(features[7:])
    sent = iter([[9 * features.mean(dim=0)], [features.T @ features], [9]])

    def all_reduce(tensor: torch.Tensor) -> None:
        tensor.copy_(torch.as_tensor(next(sent)[0]))

    parts[0].add_up(all_reduce)
    mean, covariance = parts[0].mean_and_covariance()

    torch.testing.assert_close(mean, features.mean(dim=0))
    torch.testing.assert_close(covariance, torch.cov(features.T))


def test_moments_are_the_mean_and_the_covariance() -> None:
    moments = FeatureMoments(2, CPU)
    moments.add(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))

    mean, covariance = moments.mean_and_covariance()

    assert mean.tolist() == [1.0, 2.0]
    assert covariance.tolist() == [[2.0, 4.0], [4.0, 8.0]]


def test_covariance_of_one_picture_is_refused() -> None:
    moments = FeatureMoments(2, CPU)
    moments.add(torch.ones(1, 2))

    with pytest.raises(InputError, match="1 pictures: a covariance needs at least two"):
        moments.mean_and_covariance()
