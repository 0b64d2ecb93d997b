"""Similarity and sharpness equal a plain computation."""

import math

import numpy as np
import pytest
import torch

from ernie_vilg.vqgan.metrics.similarity import gradient_energy, ssim


def plain_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Return Wang's index of one channel with values from 0 to 255, window by window."""
    weights = np.array(
        [
            [math.exp(-((row - 5) ** 2 + (column - 5) ** 2) / (2 * 1.5**2)) for column in range(11)]
            for row in range(11)
        ]
    )
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for top in range(one.shape[0] - 10):
        for left in range(one.shape[1] - 10):
            x, y = (image[top : top + 11, left : left + 11] for image in (one, other))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            variance_x = (weights * (x - mean_x) ** 2).sum()
            variance_y = (weights * (y - mean_y) ** 2).sum()
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
            found.append(
                (2 * mean_x * mean_y + c1)
                * (2 * covariance + c2)
                / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
            )
    return float(np.mean(found))


def test_ssim_is_that_of_every_window() -> None:
    generator = np.random.default_rng(0)
    # Values of a picture in [0, 255], about 128 in the mean, so that no mean is near zero only.
    one = generator.uniform(0, 255, (2, 3, 13, 15))
    other = np.clip(one + generator.normal(0, 40, one.shape), 0, 255)

    # The index is defined on values from 0 upwards; ours, in [-1, 1], are shifted there.
    found = ssim(torch.from_numpy(other / 127.5 - 1), torch.from_numpy(one / 127.5 - 1))

    for index in range(2):
        channels = [plain_ssim(one[index, c], other[index, c]) for c in range(3)]
        assert found[index].item() == pytest.approx(np.mean(channels), abs=1e-9)


def test_ssim_of_equal_pictures_is_one() -> None:
    images = torch.rand(2, 3, 11, 11) * 2 - 1

    torch.testing.assert_close(ssim(images, images), torch.ones(2, dtype=torch.float64))


def test_gradient_energy_is_the_sum_of_squared_differences() -> None:
    images = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])

    # Across: 1 and 0; down: 9 and 4.
    assert gradient_energy(images).tolist() == [14.0, 0.0]
