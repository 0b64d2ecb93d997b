"""Layers of the image tokenizer's encoder and decoder.

Source: VQGAN (Esser et al. 2021, arXiv:2012.09841) and its public code, taming-transformers, whose
layers these are; kernels of one pixel and the norm over channels are ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ernie_vilg.config.image_tokenizer import GROUP_NORM_GROUPS

_NORM_EPSILON = 1.0e-6


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut around them, at one resolution."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, normalization: str
    ) -> None:
        super().__init__()
        self.first_normalization = build_normalization(in_channels, normalization)
        self.first_convolution = build_convolution(in_channels, out_channels, kernel_size)
        self.second_normalization = build_normalization(out_channels, normalization)
        self.second_convolution = build_convolution(out_channels, out_channels, kernel_size)
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else build_convolution(in_channels, out_channels, 1)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, out_channels, height, width]."""
        features = self.first_convolution(F.silu(self.first_normalization(inputs)))
        features = self.second_convolution(F.silu(self.second_normalization(features)))
        shortcut: Tensor = self.shortcut(inputs)
        return shortcut + features


class AttentionBlock(nn.Module):
    """Single-head attention of every position to every position of the picture."""

    def __init__(self, channels: int, normalization: str) -> None:
        super().__init__()
        self.normalization = build_normalization(channels, normalization)
        self.query_key_value = build_convolution(channels, 3 * channels, 1)
        self.output = build_convolution(channels, channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features of the same shape, [batch, channels, height, width]."""
        batch, channels, height, width = inputs.shape
        projected = self.query_key_value(self.normalization(inputs))
        # [3, batch, 1 head, positions, channels]
        query, key, value = (
            projected.view(batch, 3, channels, height * width).permute(1, 0, 3, 2).unsqueeze(2)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width)
        return inputs + self.output(attended)


class Downsampling(nn.Module):
    """Convolution that halves the resolution.

    The picture is padded at its right and lower edge only, as in the public models: a symmetric
    padding would shift every feature by half a pixel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        # A kernel of 2 is local: every output depends on its own two by two inputs.
        size = 2 if kernel_size == 1 else kernel_size
        self.padding = size - 2
        self.convolution = nn.Conv2d(in_channels, out_channels, size, stride=2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to half the height and width."""
        padded = F.pad(inputs, (0, self.padding, 0, self.padding)) if self.padding else inputs
        halved: Tensor = self.convolution(padded)
        return halved


class Upsampling(nn.Module):
    """Nearest-neighbour doubling of the resolution, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = build_convolution(channels, channels, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to twice the height and width."""
        doubled: Tensor = self.convolution(F.interpolate(inputs, scale_factor=2.0, mode="nearest"))
        return doubled


class GroupNorm(nn.GroupNorm):
    """Group norm that is also fast in training on a CPU.

    There torch's backward pass for channels last takes up to 50 times as long as that for channels
    first (torch 2.13, bfloat16), longer than the convolutions around it. Copying to channels first
    and back costs little.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features of the same shape, [batch, channels, height, width]."""
        is_trained = torch.is_grad_enabled() and inputs.requires_grad
        if inputs.device.type != "cpu" or not is_trained or inputs.is_contiguous():
            return super().forward(inputs)
        normalized = super().forward(inputs.contiguous())
        return normalized.contiguous(memory_format=torch.channels_last)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features of the same shape, [batch, channels, height, width]."""
        positions = inputs.permute(0, 2, 3, 1)
        normalized = F.layer_norm(positions, self.weight.shape, self.weight, self.bias)
        return normalized.permute(0, 3, 1, 2)


def build_convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """Return a convolution that keeps the resolution."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


def build_normalization(channels: int, normalization: str) -> nn.Module:
    """Return the layer that `image_tokenizer.normalization` names."""
    if normalization == "group":
        return GroupNorm(GROUP_NORM_GROUPS, channels, eps=_NORM_EPSILON)
    if normalization == "channel":
        return ChannelNorm(channels)
    return nn.Identity()
