"""A convolutional encoder and decoder with a codebook between them.

The encoder halves the resolution once per channel multiplier after the first, and the decoder
doubles it again. Two settings make the network cheap and local: `patch_size` folds squares of
pixels into channels, so that no convolution runs at full resolution, and `encoder_kernel_size=1`
makes a code depend on its own pixels alone, so that an object has the same codes whatever stands
beside it.

Source: VQGAN (Esser et al. 2021, arXiv:2012.09841), whose codes ERNIE-ViLG uses; folding
pixels and the local encoder are ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ernie_vilg.config.image_tokenizer import GROUP_NORM_GROUPS, ImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.vqgan.quantizers.nearest import Quantized, VectorQuantizer

_RGB = 3


class AutoencoderOutput(NamedTuple):
    """Result of one forward pass."""

    reconstruction: Tensor
    """Pictures, float [batch, 3, height, width], not clamped."""
    quantized: Quantized
    """Quantized encoder outputs, and the quantizer's losses."""


class VQGAN(nn.Module):
    """Image tokenizer: `encode` turns pictures into codes, `decode` codes into pictures."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = VectorQuantizer(config.codebook_size, config.embedding_size)
        self.decoder = Decoder(config)

    def forward(self, images: Tensor) -> AutoencoderOutput:
        """Encode, quantize and decode pictures, float [batch, 3, height, width] in [-1, 1]."""
        quantized = self.quantizer(self.encoder(images))
        return AutoencoderOutput(self.decoder(quantized.vectors), quantized)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes of pictures.

        Args:
            images: float32 [batch, 3, height, width] in [-1, 1], `config.image_size` a side.

        Returns:
            codes, int64 [batch, grid, grid].

        Raises:
            InputError: the pictures are of another size.
        """
        size = self.config.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (_RGB, size, size):
            raise InputError(
                f"images of shape {list(images.shape)}: this tokenizer takes "
                f"[batch, {_RGB}, {size}, {size}]; resize them first"
            )
        with _without_tf32():
            return self.quantizer.nearest(self.encoder(images))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the pictures of codes.

        Args:
            codes: int64 [batch, grid, grid].

        Returns:
            float32 [batch, 3, height, width] in [-1, 1].
        """
        return self.decoder(self.quantizer.lookup(codes)).float().clamp(-1, 1)

    @torch.no_grad()
    def code_vectors(self) -> Tensor:
        """Return the vector of every code, float32 [codebook, embedding]."""
        codes = torch.arange(self.config.codebook_size, device=next(self.parameters()).device)
        return self.quantizer.lookup(codes.view(1, 1, -1))[0, :, 0].t().contiguous()


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Compute convolutions on a GPU in whole float32, so that codes are those of a CPU but for near
    ties; by default they round their inputs to 10 bits of mantissa.
    """
    is_allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = is_allowed


class Encoder(nn.Sequential):
    """Network from pictures [batch, 3, height, width] to vectors [batch, embedding, grid, grid]."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        kernel_size = config.encoder_kernel_size
        channels = config.base_channels * config.channel_multipliers[0]
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch_size),
            _convolution(_RGB * config.patch_size**2, channels, kernel_size),
        ]
        resolution = config.image_size // config.patch_size
        for level, multiplier in enumerate(config.channel_multipliers):
            if level > 0:
                layers.append(_downsampling(channels, kernel_size))
                resolution //= 2
            for _ in range(config.num_residual_blocks):
                width = config.base_channels * multiplier
                layers.append(ResidualBlock(channels, width, kernel_size, config.normalization))
                channels = width
                layers += _attention(channels, resolution, config)
        layers += _middle(channels, resolution, kernel_size, config)
        layers += [
            _normalization(channels, config.normalization),
            nn.SiLU(),
            _convolution(channels, config.embedding_size, kernel_size),
        ]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Network from vectors [batch, embedding, grid, grid] to pictures [batch, 3, height, width]."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        kernel_size = 3
        channels = config.base_channels * config.channel_multipliers[-1]
        resolution = config.grid_size
        layers: list[nn.Module] = [_convolution(config.embedding_size, channels, kernel_size)]
        layers += _middle(channels, resolution, kernel_size, config)
        for level, multiplier in enumerate(reversed(config.channel_multipliers)):
            if level > 0:
                layers += [
                    nn.Upsample(scale_factor=2),
                    _convolution(channels, channels, kernel_size),
                ]
                resolution *= 2
            for _ in range(config.num_residual_blocks + 1):
                width = config.base_channels * multiplier
                layers.append(ResidualBlock(channels, width, kernel_size, config.normalization))
                channels = width
                layers += _attention(channels, resolution, config)
        layers += [
            _normalization(channels, config.normalization),
            nn.SiLU(),
            _convolution(channels, _RGB * config.patch_size**2, kernel_size),
            nn.PixelShuffle(config.patch_size),
        ]
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut around them, at one resolution."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, normalization: str
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _normalization(in_channels, normalization),
            nn.SiLU(),
            _convolution(in_channels, out_channels, kernel_size),
            _normalization(out_channels, normalization),
            nn.SiLU(),
            _convolution(out_channels, out_channels, kernel_size),
        )
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else _convolution(in_channels, out_channels, 1)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, out_channels, height, width]."""
        shortcut: Tensor = self.shortcut(inputs)
        return shortcut + self.branch(inputs)


class AttentionBlock(nn.Module):
    """Single-head attention of every position to every position of the picture."""

    def __init__(self, channels: int, normalization: str) -> None:
        super().__init__()
        self.normalization = _normalization(channels, normalization)
        self.query_key_value = _convolution(channels, 3 * channels, 1)
        self.output = _convolution(channels, channels, 1)

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


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


def _downsampling(channels: int, kernel_size: int) -> nn.Conv2d:
    if kernel_size == 1:  # local: every output depends on its own two by two inputs
        return nn.Conv2d(channels, channels, 2, stride=2)
    return nn.Conv2d(channels, channels, kernel_size, stride=2, padding=1)


def _normalization(channels: int, normalization: str) -> nn.Module:
    if normalization == "group":
        return nn.GroupNorm(GROUP_NORM_GROUPS, channels, eps=1e-6)
    if normalization == "channel":
        return ChannelNorm(channels)
    return nn.Identity()


def _attention(channels: int, resolution: int, config: ImageTokenizerConfig) -> list[nn.Module]:
    if resolution in config.attention_resolutions:
        return [AttentionBlock(channels, config.normalization)]
    return []


def _middle(
    channels: int, resolution: int, kernel_size: int, config: ImageTokenizerConfig
) -> list[nn.Module]:
    """Return two residual blocks, with attention between them at the resolutions that have it."""
    return [
        ResidualBlock(channels, channels, kernel_size, config.normalization),
        *_attention(channels, resolution, config),
        ResidualBlock(channels, channels, kernel_size, config.normalization),
    ]
