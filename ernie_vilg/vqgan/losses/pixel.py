"""Distances between a picture and its reconstruction.

The training loop adds these terms with the weights of its settings. A further term, such as a
perceptual or an adversarial one, is a function of (reconstruction, images) that joins the same sum.

Source: squared error of VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937); the absolute error is
VQGAN's (Esser et al. 2021, arXiv:2012.09841).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_LARGEST_PSNR = 99.0  # JSON knows no infinity


def reconstruction_loss(
    reconstruction: Tensor, images: Tensor, *, absolute_weight: float, squared_weight: float
) -> Tensor:
    """Return the weighted sum of mean absolute and mean squared error, float32 [].

    The absolute error makes edges sharp; the squared error gives weight to small areas.

    Args:
        reconstruction: float [batch, 3, height, width].
        images: float [batch, 3, height, width] in [-1, 1].
        absolute_weight: weight of the mean absolute error.
        squared_weight: weight of the mean squared error.
    """
    reconstruction = reconstruction.float()
    absolute = F.l1_loss(reconstruction, images)
    squared = F.mse_loss(reconstruction, images)
    return absolute_weight * absolute + squared_weight * squared


def psnr(mean_squared_error: float, *, peak: float = 2.0) -> float:
    """Return the peak signal-to-noise ratio in dB, infinity for a perfect reconstruction.

    Args:
        mean_squared_error: mean over pixels and channels, of values within their range.
        peak: largest difference of two values; 2 for pixels in [-1, 1].
    """
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(peak**2 / mean_squared_error)


def psnr_of_pictures(originals: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels of all pictures, at most 99.

    Args:
        originals: pictures.
        others: as many, each of its original's size.
    """
    errors = [
        np.square(_pixels(original) - _pixels(other))
        for original, other in zip(originals, others, strict=True)
    ]
    mean = float(np.mean(np.concatenate([error.ravel() for error in errors])))
    return min(psnr(mean, peak=255.0), _LARGEST_PSNR)


def _pixels(image: Image.Image) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.asarray(image.convert("RGB"), np.float32)
