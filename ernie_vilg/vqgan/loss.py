"""How far a reconstruction is from its picture.

The terms are added by the training loop, each with its weight from the settings: absolute and
squared error here, the two distances of the quantizer beside them. A perceptual and an
adversarial term are further functions of (reconstruction, images) and join the same sum.

Source: reconstruction and quantization terms of VQ-VAE (van den Oord et al. 2017,
arXiv:1711.00937); the absolute error is VQGAN's (Esser et al. 2021, arXiv:2012.09841).
"""

import math

import torch.nn.functional as F
from torch import Tensor

from ernie_vilg.vqgan.quantizer import Quantized


def reconstruction_loss(
    reconstruction: Tensor, images: Tensor, *, absolute_weight: float, squared_weight: float
) -> Tensor:
    """Return the weighted sum of mean absolute and mean squared error, float32 [].

    The absolute error makes edges sharp, the squared one keeps small areas from being ignored.

    Args:
        reconstruction: float [batch, 3, height, width].
        images: float [batch, 3, height, width] in [-1, 1].
        absolute_weight: of the mean absolute error.
        squared_weight: of the mean squared error.
    """
    reconstruction = reconstruction.float()
    absolute = F.l1_loss(reconstruction, images)
    squared = F.mse_loss(reconstruction, images)
    return absolute_weight * absolute + squared_weight * squared


def quantization_loss(
    quantized: Quantized, *, codebook_weight: float, commitment_weight: float
) -> Tensor:
    """Return the weighted sum of codebook and commitment loss, float32 []."""
    return codebook_weight * quantized.codebook_loss + commitment_weight * quantized.commitment_loss


def psnr(mean_squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB of pixels in [-1, 1].

    Args:
        mean_squared_error: of the reconstruction clamped to [-1, 1].

    Returns:
        infinity for a perfect reconstruction.
    """
    if mean_squared_error == 0:
        return math.inf
    peak_to_peak = 2.0  # from -1 to 1
    return 10 * math.log10(peak_to_peak**2 / mean_squared_error)
