"""Distances of pictures that agree better with the eye than those of pixels."""

import torch
from torch import Tensor, nn

from ernie_vilg.config.tokenizer_objective import PerceptualConfig


class PerceptualDistance(nn.Module):
    """Distance of features, one number per picture; frozen."""

    def forward(self, pictures: Tensor, originals: Tensor) -> Tensor:
        """Return the distance of each picture to its original, float32 [batch].

        Args:
            pictures: float32 [batch, 3, height, width], about in [-1, 1]; get a gradient.
            originals: as many in [-1, 1]; get none.
        """
        raise NotImplementedError


def build_perceptual_distance(
    config: PerceptualConfig, device: torch.device
) -> PerceptualDistance | None:
    """Build the distance that the settings name; None where it has no part in the loss."""
    return None
