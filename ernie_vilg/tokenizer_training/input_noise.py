"""Noise of the pictures that the encoder is trained on.

An encoder that must reconstruct clean pictures from noisy ones gives them the same codes. What
compression and other renderers change is not white: it tints whole patches, too. So the noise is a
sum of four, of equal variance, that are constant on squares of 1, 2, 4 and 8 pixels.

Source: denoising autoencoders (Vincent et al. 2008).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDES = (1, 2, 4, 8)
"""Sides of the squares, pixels."""


def with_noise(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Return pictures with noise.

    Args:
        images: float32 [batch, 3, height, width] in [-1, 1].
        std: standard deviation of the noise; 0 returns the pictures and draws nothing.
        generator: source of the noise, on the device of the pictures.

    Returns:
        float32, of the same size and memory format, in [-1, 1].
    """
    if std == 0:
        return images
    height, width = images.shape[-2:]
    noise = torch.zeros_like(images)
    for side in SIDES:
        squares = (*images.shape[:2], -(-height // side), -(-width // side))
        coarse = torch.randn(squares, generator=generator, device=images.device)
        spread = F.interpolate(coarse, scale_factor=side, mode="nearest")
        noise += spread[..., :height, :width]
    return (images + noise * (std / len(SIDES) ** 0.5)).clamp(-1, 1)
