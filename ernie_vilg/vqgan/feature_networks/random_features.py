"""Features of fixed random convolutions, for a machine without trained weights.

They respond to edges and textures at several scales, and not to what a picture shows: a
reconstruction with the right texture at a slightly wrong place costs less than by pixels, but two
objects that the eye keeps apart may cost as little. The weights are random signs, taken from the
bits of a generator whose stream is fixed, so that they are the same on every machine.

Source: random networks keep what a picture's appearance needs, He et al. 2016 (arXiv:1606.04801);
trained ones agree better with people, Zhang et al. 2018 (arXiv:1801.03924).
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHANNELS = (3, 32, 64, 96, 128)
_KERNEL_SIZE = 3
_SEED = 20_180_111


class RandomFeatures(nn.Module):
    """Network from pictures to features at four resolutions, each half the one before."""

    def __init__(self) -> None:
        super().__init__()
        generator = np.random.PCG64(_SEED)
        for level, (inputs, outputs) in enumerate(itertools.pairwise(_CHANNELS)):
            shape = (outputs, inputs, _KERNEL_SIZE, _KERNEL_SIZE)
            bits = generator.random_raw(math.prod(shape)) >> np.uint64(63)
            signs = torch.from_numpy(bits.astype(np.float32) * 2 - 1).view(shape)
            # Keeps the variance through a rectifier.
            weight = signs * math.sqrt(2 / (inputs * _KERNEL_SIZE**2))
            self.register_buffer(f"weight{level}", weight)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of each level.

        Args:
            images: float32 [batch, 3, height, width] in [-1, 1], at least 8 pixels a side.

        Returns:
            float32 [batch, channels, rows, columns] each.
        """
        found: list[Tensor] = []
        for level in range(len(_CHANNELS) - 1):
            if level > 0:
                images = F.avg_pool2d(images, 2)
            padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
            images = F.relu(F.conv2d(padded, self.get_buffer(f"weight{level}")))
            found.append(images)
        return found
