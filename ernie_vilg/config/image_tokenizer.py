"""The architecture of an image tokenizer, which is stored with its weights.

Source: VQGAN (Esser et al. 2021, arXiv:2012.09841) for the architecture, apart from `patch_size`,
`encoder_kernel_size` and the normalisation per position.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from ernie_vilg.config.schema import (
    NaturalInt,
    PositiveInt,
    Range,
    Settings,
)
from ernie_vilg.errors import InputError

MAX_CODEBOOK_SIZE = 1 << 16
GROUP_NORM_GROUPS = 32
"""Number of channel groups, as in VQGAN."""

CodebookSize = Annotated[
    int,
    Range(at_least=1, at_most=MAX_CODEBOOK_SIZE, reason="token shards hold codes as uint16"),
]


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig(Settings, section="image_tokenizer"):
    """Architecture: pictures to a square grid of codes, and back."""

    image_size: PositiveInt = 256
    """Pixels per side of a picture."""
    codebook_size: CodebookSize = 8192
    """Number of codes."""
    embedding_size: PositiveInt = 256
    """Length of a code vector."""
    latent_channels: PositiveInt | None = None
    """Number of channels that the encoder ends with and the decoder starts with, where it differs
    from a code vector's length: convolutions of one pixel map between the two, as in the public
    VQGANs. null leaves these convolutions out."""
    quantizer: Literal["nearest", "ema", "normalized", "simvq", "gumbel"] = "nearest"
    """Rule by which an encoder output becomes a code: "nearest" code by L2 distance, moved by
    gradients (VQ-VAE); "ema": nearest, moved by averages of the outputs; "normalized": nearest of
    vectors of length 1 (ViT-VQGAN, LlamaGen), for an `embedding_size` of about 8; "simvq": nearest
    of a linear map of fixed random codes (arXiv:2411.02038); "gumbel": the most likely of the
    encoder's logits, as the dVAE of DALL-E."""
    base_channels: PositiveInt = 128
    """Number of channels at the finest resolution, before its multiplier."""
    channel_multipliers: tuple[PositiveInt, ...] = (1, 1, 2, 4)
    """Multiples of `base_channels`, finest resolution first. Each one after the first halves the
    resolution."""
    num_residual_blocks: NaturalInt = 2
    """Number of residual blocks per resolution of the encoder; the decoder has one more."""
    attention_resolutions: tuple[int, ...] = ()
    """Sides in positions at which self-attention follows each residual block."""
    middle_attention: bool = False
    """Whether self-attention also stands in the middle of encoder and decoder where the grid's side
    is not among `attention_resolutions`; where it is, the middle attends anyway."""
    patch_size: PositiveInt = 1
    """Side in pixels of the squares that are folded into channels before the first convolution and
    unfolded after the last. Above 1 no convolution runs at full resolution, which saves most of the
    time and costs sharpness in photographs."""
    encoder_kernel_size: Literal[1, 3] = 3
    """Side of the encoder's convolutions: 3, or 1 for codes that depend on their own pixels
    only."""
    normalization: Literal["group", "channel", "none"] = "group"
    """Normalization: "group" over groups of channels and the whole picture, as in VQGAN; "channel"
    over the channels of each position, so that no code depends on the whole picture; or "none"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channel_multipliers:
            raise InputError(
                f"image_tokenizer.channel_multipliers={list(self.channel_multipliers)}: give at "
                "least one; their number sets the downsampling factor"
            )
        self._check_grid()
        if self.normalization == "group" and self.base_channels % GROUP_NORM_GROUPS:
            raise InputError(
                f"image_tokenizer.base_channels={self.base_channels} with normalization=group: set "
                f"a multiple of {GROUP_NORM_GROUPS}, the number of groups"
            )

    def _check_grid(self) -> None:
        if self.patch_size & (self.patch_size - 1):
            raise InputError(
                f"image_tokenizer.patch_size={self.patch_size} makes the downsampling factor "
                f"{self.downsampling_factor}, which is no power of two: set patch_size to a power "
                "of two, such as 1, 4 or 8"
            )
        if self.image_size % self.downsampling_factor:
            raise InputError(
                f"image_tokenizer.image_size={self.image_size} is no multiple of the downsampling "
                f"factor {self.downsampling_factor} (patch_size={self.patch_size} times 2 for each "
                f"of {len(self.channel_multipliers)} channel_multipliers but the first): set it to "
                f"a multiple of {self.downsampling_factor}"
            )
        resolutions = tuple(
            self.image_size // self.patch_size >> level
            for level in range(len(self.channel_multipliers))
        )
        unknown = set(self.attention_resolutions) - set(resolutions)
        if unknown:
            raise InputError(
                f"image_tokenizer.attention_resolutions={list(self.attention_resolutions)}: this "
                f"architecture computes at {list(resolutions)} only; choose among these"
            )

    @property
    def downsampling_factor(self) -> int:
        """Pixels per side of a code's part of the picture."""
        return int(self.patch_size * 2 ** (len(self.channel_multipliers) - 1))

    @property
    def grid_size(self) -> int:
        """Codes per side of a picture."""
        return self.image_size // self.downsampling_factor
