"""Settings of an image tokenizer and of its training.

`ImageTokenizerConfig` is the architecture, which is stored with the weights; the other classes are
settings of the training, and `TrainImageTokenizerConfig` those of launch/train_image_tokenizer.py.

Source: VQGAN (Esser et al. 2021, arXiv:2012.09841) for the architecture, apart from `patch_size`,
`encoder_kernel_size` and the normalisation per position.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.schema import (
    Fraction,
    LocalOrRemote,
    LocalOutput,
    NaturalFloat,
    NaturalInt,
    PositiveInt,
    Range,
    Settings,
)
from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import is_remote, shown

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
    base_channels: PositiveInt = 128
    """Number of channels at the finest resolution, before its multiplier."""
    channel_multipliers: tuple[PositiveInt, ...] = (1, 1, 2, 4)
    """Multiples of `base_channels`, finest resolution first. Each one after the first halves the
    resolution."""
    num_residual_blocks: NaturalInt = 2
    """Number of residual blocks per resolution of the encoder; the decoder has one more."""
    attention_resolutions: tuple[int, ...] = ()
    """Grid sides at which self-attention follows each residual block."""
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

    def _check_grid(self) -> None:
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
        if self.normalization == "group" and self.base_channels % GROUP_NORM_GROUPS:
            raise InputError(
                f"image_tokenizer.base_channels={self.base_channels} with normalization=group: set "
                f"a multiple of {GROUP_NORM_GROUPS}, the number of groups"
            )

    @property
    def downsampling_factor(self) -> int:
        """Pixels per side of a code's part of the picture."""
        return int(self.patch_size * 2 ** (len(self.channel_multipliers) - 1))

    @property
    def grid_size(self) -> int:
        """Codes per side of a picture."""
        return self.image_size // self.downsampling_factor


@dataclass(frozen=True, kw_only=True)
class ReconstructionObjectiveConfig(Settings, section="objective"):
    """Terms of an image tokenizer's loss. Pixels are in [-1, 1]."""

    absolute_error_weight: NaturalFloat = 1.0
    """Weight of the mean absolute error, which keeps edges sharp."""
    squared_error_weight: NaturalFloat = 1.0
    """Weight of the mean squared error, which PSNR measures."""
    codebook_weight: NaturalFloat = 1.0
    """Weight of the mean squared distance that moves codes to encoder outputs."""
    commitment_weight: NaturalFloat = 0.25
    """Weight of the mean squared distance that moves encoder outputs to codes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.absolute_error_weight + self.squared_error_weight == 0:
            raise InputError(
                "objective.absolute_error_weight=0 with objective.squared_error_weight=0: one of "
                "them must be above 0, or the loss ignores the picture"
            )


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerTrainingConfig(Settings, section="training"):
    """One training run of an image tokenizer."""

    steps: PositiveInt
    """Number of optimizer steps of the run, all restarts together."""
    global_batch_size: PositiveInt
    """Pictures per optimizer step, all ranks together."""
    revive_every: NaturalInt = 100
    """Interval in steps after which unused codes are moved to encoder outputs that are far from
    every code; 0 moves none."""
    revive_until: Fraction = 0.5
    """Fraction of the run after which no code is moved, so that all settle."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic: "bf16", "fp32", or "auto", which is bf16 on a GPU and on a CPU with AMX. Weights,
    optimizer and quantizer are always float32."""
    seed: NaturalInt = 0
    """Seed of the fresh weights, the order of the samples, their crops and flips, and the choice of
    moved codes."""
    shuffle_block_shards: PositiveInt = 16
    """Number of shards per rank that are open, and shuffled together."""
    horizontal_flip: bool = False
    """Whether a random half of the pictures is mirrored."""
    image_cache_bytes: NaturalInt = 0
    """Memory per rank for decoded pictures, bytes; the others are decoded again. For small data
    sets; needs loader.num_workers=0."""
    log_every: PositiveInt = 50
    """Interval of lines in the log and in metrics.jsonl, steps."""
    save_every: PositiveInt = 500
    """Interval of checkpoints, steps; the last two are kept."""
    num_evaluation_images: PositiveInt = 512
    """Number of pictures for the final figures, the first of the sample order."""
    timeout_seconds: PositiveInt = 600
    """Timeout of collectives."""


@dataclass(frozen=True, kw_only=True)
class TrainImageTokenizerConfig(Settings):
    """Settings of launch/train_image_tokenizer.py."""

    shards: LocalOrRemote
    """Folder or URL (s3://, gs://, https://) of image shards, written by launch/build_shards.py.
    Pictures larger than the architecture's are cropped at random places."""
    run_dir: LocalOutput
    """Run folder for checkpoints, metrics and the final weights. The same folder resumes the
    run."""
    image_tokenizer: ImageTokenizerConfig
    """Architecture."""
    objective: ReconstructionObjectiveConfig = field(default_factory=ReconstructionObjectiveConfig)
    """Loss."""
    optimizer: OptimizerConfig
    """AdamW and its schedule."""
    training: ImageTokenizerTrainingConfig
    """Training run."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Reading of one rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.image_cache_bytes > 0 and self.loader.num_workers > 0:
            raise InputError(
                f"training.image_cache_bytes={self.training.image_cache_bytes} with "
                f"loader.num_workers={self.loader.num_workers}: only a rank that reads without "
                "workers caches pictures, so set loader.num_workers=0 if all of them fit, and else "
                "training.image_cache_bytes=0"
            )
        if is_remote(self.shards) and self.loader.cache_dir is None:
            raise InputError(
                f"shards={shown(self.shards)} is remote and loader.cache_dir is null: set it to a "
                "folder on this node's own disk, into which shards are copied"
            )

    def check_ranks(self, world_size: int) -> None:
        """Check that every rank gets an equal share of each batch.

        Raises:
            InputError: the ranks do not divide the batch.
        """
        batch_size = self.training.global_batch_size
        if batch_size % world_size:
            raise InputError(
                f"training.global_batch_size={batch_size} on {world_size} ranks: every rank needs "
                f"an equal share, so set a multiple of {world_size}, or start another number of "
                "ranks"
            )

    def check_image_size(self, shards_image_size: int) -> None:
        """Check that the shards' pictures are as large as the architecture's.

        Args:
            shards_image_size: pixels per side, from the shards' manifest.

        Raises:
            InputError: the shards' pictures are too small.
        """
        image_size = self.image_tokenizer.image_size
        if shards_image_size < image_size:
            raise InputError(
                f"the pictures in {shown(self.shards)} have {shards_image_size} pixels a side "
                f"where image_tokenizer.image_size={image_size}: set it to at most "
                f"{shards_image_size}, or build the shards with an image_size of at least "
                f"{image_size}"
            )
