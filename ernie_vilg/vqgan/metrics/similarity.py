"""Structural similarity and sharpness of reconstructions.

Source: structural similarity, Wang et al. 2004 ("Image quality assessment: from error visibility to
structural similarity"), of each colour channel, without its optional downsampling; the comparison
of gradient energies is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_SIDE = 11
"""Smallest side of pictures whose structural similarity is defined: the window's, pixels."""
_DEVIATION = 1.5
_RANGE = 2.0
_C1 = (0.01 * _RANGE) ** 2
_C2 = (0.03 * _RANGE) ** 2


def ssim(pictures: Tensor, originals: Tensor) -> Tensor:
    """Return the structural similarity of each picture to its original, 1 for equal ones.

    The mean over channels and over all Gaussian windows of 11 x 11 pixels that lie within the
    picture.

    Args:
        pictures: float [batch, channels, height, width] in [-1, 1], at least `SMALLEST_SIDE` a
            side.
        originals: as many.

    Returns:
        float64 [batch].
    """
    # In float64: the variance is a small difference of two large numbers in flat areas.
    # From 0 upwards, as the index compares mean luminances.
    one, other = pictures.double() + 1, originals.double() + 1
    mean_one, mean_other = _window_means(one), _window_means(other)
    variance_one = _window_means(one * one) - mean_one.square()
    variance_other = _window_means(other * other) - mean_other.square()
    covariance = _window_means(one * other) - mean_one * mean_other
    luminance = (2 * mean_one * mean_other + _C1) / (mean_one.square() + mean_other.square() + _C1)
    structure = (2 * covariance + _C2) / (variance_one + variance_other + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def gradient_energy(pictures: Tensor) -> Tensor:
    """Return the sum of the squared differences of neighbouring pixels of each picture.

    A blurred picture has less than its original, a noisy one more. Divide the sum over
    reconstructions by that over originals.

    Args:
        pictures: float [batch, channels, height, width].

    Returns:
        float64 [batch].
    """
    return sum(
        (pictures.diff(dim=dim).double().square().sum(dim=(1, 2, 3)) for dim in (2, 3)),
        start=torch.zeros(len(pictures), dtype=torch.float64, device=pictures.device),
    )


def _window_means(values: Tensor) -> Tensor:
    """Return weighted means of all windows, [batch, channels, height - 10, width - 10]."""
    at = torch.arange(SMALLEST_SIDE, dtype=values.dtype, device=values.device)
    window = torch.exp(-((at - SMALLEST_SIDE // 2) ** 2) / (2 * _DEVIATION**2))
    window = window / window.sum()
    channels = values.shape[1]
    down = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    across = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(values, down, groups=channels), across, groups=channels)
