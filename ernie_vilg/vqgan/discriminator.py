"""A discriminator of patches: each logit judges one square of the picture.

Group normalization takes the place of batch normalization: a logit then depends on its own picture
alone, so that several ranks, or micro-batches, train the discriminator as one large batch does, and
that originals and reconstructions pass through it together.

Source: PatchGAN (Isola et al. 2017, arXiv:1611.07004), in the form of VQGAN (Esser et al. 2021,
arXiv:2012.09841), which normalizes over the batch.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_RGB = 3
_KERNEL_SIZE = 4
_SLOPE = 0.2
_GROUPS = 32
_LARGEST_MULTIPLIER = 8
_INITIAL_DEVIATION = 0.02


class PatchDiscriminator(nn.Sequential):
    """Network from pictures [batch, 3, height, width] to logits [batch, 1, rows, columns]."""

    def __init__(self, base_channels: int, num_layers: int) -> None:
        """Build the network with fresh weights, drawn from torch's global generator.

        Args:
            base_channels: channels after the first convolution.
            num_layers: convolutions that halve the resolution.
        """
        layers: list[nn.Module] = [_convolution(_RGB, base_channels, 2), nn.LeakyReLU(_SLOPE)]
        channels = base_channels
        # The last of these layers keeps the resolution.
        for level, stride in enumerate([2] * (num_layers - 1) + [1], start=1):
            width = base_channels * min(2**level, _LARGEST_MULTIPLIER)
            layers += [
                _convolution(channels, width, stride, bias=False),
                nn.GroupNorm(math.gcd(_GROUPS, width), width),
                nn.LeakyReLU(_SLOPE),
            ]
            channels = width
        super().__init__(*layers, _convolution(channels, 1, 1))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Give no gradient to the weights in what is computed inside, only to the pictures."""
        self.requires_grad_(False)
        try:
            yield
        finally:
            self.requires_grad_(True)


def _convolution(
    in_channels: int, out_channels: int, stride: int, *, bias: bool = True
) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, out_channels, _KERNEL_SIZE, stride, padding=1, bias=bias)
    nn.init.normal_(convolution.weight, 0.0, _INITIAL_DEVIATION)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def logits_of(discriminator: nn.Module, originals: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of originals and of other pictures, from one pass over both.

    Args:
        discriminator: network whose logits depend on one picture each.
        originals: float [batch, 3, height, width].
        others: as many pictures.
    """
    real, fake = discriminator(torch.cat([originals, others])).chunk(2)
    return real, fake
