"""A convolutional encoder and decoder with a codebook between them.

The encoder halves the resolution once per channel multiplier after the first, and the decoder
doubles it again: the networks of the public VQGANs, so that their weights are ours under other
names. Two settings make the network cheap and local: `patch_size` folds squares of pixels into
channels, so that no convolution runs at full resolution, and `encoder_kernel_size=1` makes a code
depend on its own pixels alone, so that an object has the same codes whatever stands beside it.

Source: VQGAN (Esser et al. 2021, arXiv:2012.09841), whose codes ERNIE-ViLG uses, and its public
code, taming-transformers; folding pixels and the local encoder are ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.vqgan.layers import (
    AttentionBlock,
    Downsampling,
    ResidualBlock,
    Upsampling,
    build_convolution,
    build_normalization,
)
from ernie_vilg.vqgan.quantizers.build import build_quantizer
from ernie_vilg.vqgan.quantizers.quantizer import Quantized
from ernie_vilg.vqgan.tiling import decode_in_tiles, tiling_of

_RGB = 3
_DECODER_KERNEL_SIZE = 3


class AutoencoderOutput(NamedTuple):
    """Result of one forward pass."""

    reconstruction: Tensor
    """Pictures, float [batch, 3, height, width], not clamped."""
    quantized: Quantized
    """Quantized encoder outputs, and the quantizer's losses."""


class VQGAN(nn.Module):
    """Image tokenizer: `encode` turns pictures into codes, `decode` codes into pictures."""

    def __init__(
        self, config: ImageTokenizerConfig, codebook: CodebookConfig | None = None
    ) -> None:
        """Build it with fresh weights.

        Args:
            config: architecture.
            codebook: training of the codes; None where none are trained.
        """
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = build_quantizer(config, codebook)
        self.decoder = Decoder(config)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, where the adaptive weight of an adversarial
        loss compares gradients.
        """
        return self.decoder.output.weight

    def forward(
        self, images: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> AutoencoderOutput:
        """Encode, quantize and decode pictures.

        Args:
            images: float [batch, 3, height, width] in [-1, 1].
            progress: fraction of the run that is done, for the quantizer's schedules.
            generator: source of the quantizer's noise, on the pictures' device.
        """
        quantized = self.quantizer(self.encoder(images), progress=progress, generator=generator)
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
        return self.encode_any_size(images)

    @torch.no_grad()
    def encode_any_size(self, images: Tensor) -> Tensor:
        """Return the codes of pictures of another size than the training's, in one grid.

        Norms over the picture and attention see more or less than in training, so codes are worse
        the further the size is from it.

        Args:
            images: float32 [batch, 3, height, width] in [-1, 1]; both sides are multiples of
                `config.downsampling_factor`.

        Returns:
            codes, int64 [batch, height / factor, width / factor].

        Raises:
            InputError: a side is no such multiple.
        """
        factor = self.config.downsampling_factor
        height, width = images.shape[-2:]
        if height % factor or width % factor or not height * width:
            raise InputError(
                f"pictures of {height}x{width} pixels: this tokenizer has one code per {factor}x"
                f"{factor} pixels; cut or resize both sides to multiples of {factor}"
            )
        images = images.contiguous(memory_format=torch.channels_last)
        with _without_tf32():
            return self.quantizer.nearest(self.encoder(images))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the pictures of codes; grids larger than the training's are drawn in tiles.

        A decoder with norms over the picture or attention draws tiles a little differently than it
        would draw the whole, see `ernie_vilg.vqgan.tiling`.

        Args:
            codes: int64 [batch, rows, columns].

        Returns:
            float32 [batch, 3, height, width] in [-1, 1].
        """
        if max(codes.shape[1:]) <= self.config.grid_size:
            return self._decode(codes)
        factor = self.config.downsampling_factor
        return decode_in_tiles(self._decode, codes, tiling_of(self.config), factor)

    def _decode(self, codes: Tensor) -> Tensor:
        vectors = self.quantizer.lookup(codes).contiguous(memory_format=torch.channels_last)
        return self.decoder(vectors).float().clamp(-1, 1)


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


class Encoder(nn.Module):
    """Network from pictures [batch, 3, height, width] to vectors [batch, embedding, grid, grid]."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        kernel_size = config.encoder_kernel_size
        widths = [config.base_channels * factor for factor in config.channel_multipliers]
        # Blocks change the width; without any, the convolution before them does.
        has_blocks = config.num_residual_blocks > 0
        channels = config.base_channels if has_blocks else widths[0]
        self.folding = nn.PixelUnshuffle(config.patch_size)
        self.input = build_convolution(_RGB * config.patch_size**2, channels, kernel_size)
        self.levels = nn.ModuleList()
        resolution = config.image_size // config.patch_size
        for index, width in enumerate(widths):
            layers: list[nn.Module] = []
            if index > 0:
                halved = channels if has_blocks else width
                layers.append(Downsampling(channels, halved, kernel_size))
                channels, resolution = halved, resolution // 2
            for _ in range(config.num_residual_blocks):
                layers.append(ResidualBlock(channels, width, kernel_size, config.normalization))
                channels = width
                layers += _attention(channels, resolution, config)
            self.levels.append(nn.Sequential(*layers))
        self.middle = _middle(channels, kernel_size, config)
        self.normalization = build_normalization(channels, config.normalization)
        self.output = build_convolution(channels, _latent_channels(config), kernel_size)
        self.projection = _projection(config.latent_channels, config.embedding_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return the vectors of pictures."""
        features = self.input(self.folding(images))
        for level in self.levels:
            features = level(features)
        features = F.silu(self.normalization(self.middle(features)))
        vectors: Tensor = self.projection(self.output(features))
        return vectors


class Decoder(nn.Module):
    """Network from vectors [batch, embedding, grid, grid] to pictures [batch, 3, height, width]."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        kernel_size = _DECODER_KERNEL_SIZE
        channels = config.base_channels * config.channel_multipliers[-1]
        self.projection = _projection(config.embedding_size, config.latent_channels)
        self.input = build_convolution(_latent_channels(config), channels, kernel_size)
        self.middle = _middle(channels, kernel_size, config)
        self.levels = nn.ModuleList()
        resolution = config.grid_size
        for index, multiplier in enumerate(reversed(config.channel_multipliers)):
            layers: list[nn.Module] = []
            if index > 0:
                layers.append(Upsampling(channels))
                resolution *= 2
            for _ in range(config.num_residual_blocks + 1):
                width = config.base_channels * multiplier
                layers.append(ResidualBlock(channels, width, kernel_size, config.normalization))
                channels = width
                layers += _attention(channels, resolution, config)
            self.levels.append(nn.Sequential(*layers))
        self.normalization = build_normalization(channels, config.normalization)
        self.output = build_convolution(channels, _RGB * config.patch_size**2, kernel_size)
        self.unfolding = nn.PixelShuffle(config.patch_size)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the pictures of vectors, not clamped."""
        features = self.middle(self.input(self.projection(vectors)))
        for level in self.levels:
            features = level(features)
        pictures: Tensor = self.unfolding(self.output(F.silu(self.normalization(features))))
        return pictures


def _latent_channels(config: ImageTokenizerConfig) -> int:
    return config.latent_channels or config.embedding_size


def _projection(in_channels: int | None, out_channels: int | None) -> nn.Module:
    """Return the 1x1 convolution between latent channels, where there are any, and codes."""
    if in_channels is None or out_channels is None:
        return nn.Identity()
    return build_convolution(in_channels, out_channels, 1)


def _attention(channels: int, resolution: int, config: ImageTokenizerConfig) -> list[nn.Module]:
    if resolution in config.attention_resolutions:
        return [AttentionBlock(channels, config.normalization)]
    return []


def _middle(channels: int, kernel_size: int, config: ImageTokenizerConfig) -> nn.Sequential:
    """Return two residual blocks, with attention between them where the settings ask for it."""
    is_attending = config.middle_attention or config.grid_size in config.attention_resolutions
    return nn.Sequential(
        ResidualBlock(channels, channels, kernel_size, config.normalization),
        *([AttentionBlock(channels, config.normalization)] if is_attending else []),
        ResidualBlock(channels, channels, kernel_size, config.normalization),
    )
