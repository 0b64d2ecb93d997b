"""What an image tokenizer is made of, and how one is trained.

`ImageTokenizerConfig` is the architecture and travels with the weights; the others say how
it is trained, and `TrainImageTokenizerConfig` is what launch/train_image_tokenizer.py takes.

Source: the architecture's settings are those of VQGAN (Esser et al. 2021, arXiv:2012.09841);
`patch_size`, `encoder_kernel_size` and the normalisation per position are ours.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.schema import (
    LocalOrRemote,
    LocalOutput,
    NaturalFloat,
    NaturalInt,
    PositiveInt,
    Range,
    Settings,
    Share,
)
from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import is_remote, shown

MAX_CODEBOOK_SIZE = 1 << 16
GROUP_NORM_GROUPS = 32
"""Groups of channels, as in VQGAN."""

CodebookSize = Annotated[
    int,
    Range(at_least=1, at_most=MAX_CODEBOOK_SIZE, reason="token shards hold codes as uint16"),
]


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig(Settings, section="image_tokenizer"):
    """The architecture: pictures to a square grid of codes, and back."""

    image_size: PositiveInt = 256
    """Pixels per side of a picture."""
    codebook_size: CodebookSize = 8192
    """Number of codes."""
    embedding_size: PositiveInt = 256
    """Numbers per code vector."""
    base_channels: PositiveInt = 128
    """Channels at the finest resolution, before its multiplier."""
    channel_multipliers: tuple[PositiveInt, ...] = (1, 1, 2, 4)
    """Multiples of `base_channels`, finest resolution first. Each one after the first halves
    the resolution."""
    num_residual_blocks: NaturalInt = 2
    """Residual blocks per resolution of the encoder; the decoder has one more."""
    attention_resolutions: tuple[int, ...] = ()
    """Grid sides at which self-attention follows each residual block."""
    patch_size: PositiveInt = 1
    """Pixels per side of the squares that are folded into channels before the first
    convolution, and unfolded after the last. Above 1 no convolution runs at full resolution,
    which costs sharpness in photographs and saves nearly all of the time."""
    encoder_kernel_size: Literal[1, 3] = 3
    """Side of the encoder's convolutions: 3, or 1 for an encoder in which a code depends on
    nothing but the pixels it stands for."""
    normalization: Literal["group", "channel", "none"] = "group"
    """"group": over groups of channels and the whole picture, as in VQGAN. "channel": over the
    channels of each position, so that no code depends on the whole picture. "none"."""

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
        """Pixels per side that one code stands for."""
        return int(self.patch_size * 2 ** (len(self.channel_multipliers) - 1))

    @property
    def grid_size(self) -> int:
        """Codes per side of a picture."""
        return self.image_size // self.downsampling_factor


@dataclass(frozen=True, kw_only=True)
class ReconstructionObjectiveConfig(Settings, section="objective"):
    """What the loss of an image tokenizer is summed from. Pixels are in [-1, 1]."""

    absolute_error_weight: NaturalFloat = 1.0
    """Weight of the mean absolute error, which keeps edges sharp."""
    squared_error_weight: NaturalFloat = 1.0
    """Weight of the mean squared error, which PSNR measures."""
    codebook_weight: NaturalFloat = 1.0
    """Weight of the mean squared distance that draws codes to encoder outputs."""
    commitment_weight: NaturalFloat = 0.25
    """Weight of the mean squared distance that draws encoder outputs to codes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.absolute_error_weight + self.squared_error_weight == 0:
            raise InputError(
                "objective.absolute_error_weight=0 with objective.squared_error_weight=0: one of "
                "them must be above 0, or nothing asks for a likeness"
            )


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerTrainingConfig(Settings, section="training"):
    """One training run of an image tokenizer."""

    steps: PositiveInt
    """Optimizer steps in the whole run, over all its restarts."""
    global_batch_size: PositiveInt
    """Pictures per optimizer step, over all ranks."""
    revive_every: NaturalInt = 100
    """Steps per window after which codes that no picture used are moved to where encoder
    outputs are far from every code; 0 never moves any."""
    revive_until: Share = 0.5
    """Share of the run after which no code is moved any more, so that all settle."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """"bf16" or "fp32" arithmetic; "auto" is bf16 on a GPU and on a CPU with AMX. Weights,
    optimizer and quantizer are float32 always."""
    seed: NaturalInt = 0
    """Names the fresh weights, the order of the samples, how they are cut and mirrored, and the
    choice of moved codes."""
    shuffle_block_shards: PositiveInt = 16
    """Shards whose samples are shuffled together and kept open, per rank."""
    horizontal_flip: bool = False
    """Whether every other picture, by chance, is mirrored."""
    image_cache_bytes: NaturalInt = 0
    """Memory for decoded pictures per rank, in bytes; what does not fit is decoded again. For small
    data sets; needs loader.num_workers=0."""
    log_every: PositiveInt = 50
    """Steps between two lines in the log and in metrics.jsonl."""
    save_every: PositiveInt = 500
    """Steps between two checkpoints; the last two are kept."""
    num_evaluation_images: PositiveInt = 512
    """Pictures, from the beginning of the sample order, that the final figures are of."""
    timeout_seconds: PositiveInt = 600
    """How long a rank waits for the others before the run stops."""


@dataclass(frozen=True, kw_only=True)
class TrainImageTokenizerConfig(Settings):
    """Settings of launch/train_image_tokenizer.py."""

    shards: LocalOrRemote
    """Folder or URL (s3://, gs://, https://) of image shards, written by launch/build_shards.py.
    Pictures larger than the architecture's are cut, at random places."""
    run_dir: LocalOutput
    """Folder for checkpoints, metrics and the final weights. A run found in it goes on."""
    image_tokenizer: ImageTokenizerConfig
    """The architecture."""
    objective: ReconstructionObjectiveConfig = field(default_factory=ReconstructionObjectiveConfig)
    """The loss."""
    optimizer: OptimizerConfig
    """AdamW and its schedule."""
    training: ImageTokenizerTrainingConfig
    """The run."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """How one rank reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.image_cache_bytes > 0 and self.loader.num_workers > 0:
            raise InputError(
                f"training.image_cache_bytes={self.training.image_cache_bytes} with "
                f"loader.num_workers={self.loader.num_workers}: pictures are kept by a rank that "
                "reads them itself, so set loader.num_workers=0 where all of them fit, and "
                "training.image_cache_bytes=0 where not"
            )
        if is_remote(self.shards) and self.loader.cache_dir is None:
            raise InputError(
                f"shards={shown(self.shards)} is remote and loader.cache_dir is null: set it to a "
                "folder on this node's own disk, shards are copied there"
            )

    def check_ranks(self, world_size: int) -> None:
        """Check that every rank gets an equal share of each batch.

        Raises:
            InputError: it does not.
        """
        batch_size = self.training.global_batch_size
        if batch_size % world_size:
            raise InputError(
                f"training.global_batch_size={batch_size} on {world_size} ranks: every rank needs "
                f"an equal share, so set a multiple of {world_size}, or start another number of "
                "ranks"
            )

    def check_image_size(self, shards_image_size: int) -> None:
        """Check that the architecture's pictures can be cut from those of the shards.

        Args:
            shards_image_size: pixels per side, of the shards' manifest.

        Raises:
            InputError: they are too small.
        """
        image_size = self.image_tokenizer.image_size
        if shards_image_size < image_size:
            raise InputError(
                f"the pictures in {shown(self.shards)} have {shards_image_size} pixels a side "
                f"where image_tokenizer.image_size={image_size}: set it to at most "
                f"{shards_image_size}, or build the shards with an image_size of at least "
                f"{image_size}"
            )
