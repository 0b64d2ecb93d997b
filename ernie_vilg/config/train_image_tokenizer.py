"""Settings of launch/train_image_tokenizer.py.

They are the sections of a pretraining run, where these have a meaning, and the image tokenizer's
own.
"""

from dataclasses import dataclass, field
from typing import Literal

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.cluster import ClusterConfig
from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.profile import ProfileConfig
from ernie_vilg.config.run import require_timeouts_in_order
from ernie_vilg.config.schema import (
    FractionBelowOne,
    LocalOrRemote,
    LocalOutput,
    MayChange,
    NaturalInt,
    NeverChanges,
    OfOneStart,
    PositiveInt,
    Settings,
    Tracked,
)
from ernie_vilg.config.stopping import StoppingConfig
from ernie_vilg.config.tokenizer_objective import TokenizerObjectiveConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import is_remote, shown


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerTrainingConfig(Settings, section="training"):
    """Length and batches of the run, its seed and its log."""

    steps: MayChange[PositiveInt]  # a longer run also stretches the learning rate's decay
    """Number of optimizer steps of the run, all restarts together."""
    global_batch_size: NeverChanges[PositiveInt]
    """Pictures per optimizer step, all ranks together."""
    micro_batch_size: MayChange[PositiveInt | None] = None
    """Pictures per rank per forward pass; null takes a rank's share of the batch in one pass."""
    seed: NeverChanges[NaturalInt] = 0
    """Seed of the fresh weights, the order of the samples, their crops and flips, and the choice of
    moved codes."""
    ema_decay: FractionBelowOne = 0.0
    """Decay per step of the weights' moving average, which is evaluated and exported in place of
    the last weights; 0 turns it off."""
    shuffle_block_shards: NeverChanges[PositiveInt] = 16
    """Number of shards per rank that are open, and shuffled together."""
    horizontal_flip: NeverChanges[bool] = False
    """Whether a random half of the pictures is mirrored."""
    image_cache_bytes: MayChange[NaturalInt] = 0
    """Memory per rank for decoded pictures, bytes; the others are decoded again. For small data
    sets; needs loader.num_workers=0."""
    log_every: MayChange[PositiveInt] = 50
    """Interval of lines in the log and in metrics.jsonl, steps."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionsConfig(Settings, section="reconstructions"):
    """Pictures and figures of held-out pictures during training."""

    shards: LocalOrRemote | None = None
    """Folder or URL of held-out image shards; null takes pictures of `shards`, which are trained
    on: the log and every file say so."""
    every: NaturalInt = 0
    """Interval of evaluations, steps; the last step always has one. 0: only there."""
    pictures: PositiveInt = 512
    """Number of pictures, the first in the shards' order."""


@dataclass(frozen=True, kw_only=True)
class TrainImageTokenizerConfig(Settings):
    """Settings of launch/train_image_tokenizer.py."""

    shards: MayChange[LocalOrRemote]  # the checkpoint knows their hash
    """Folder or URL (s3://, gs://, https://) of image shards, written by launch/build_shards.py.
    Pictures larger than the architecture's are cropped at random places."""
    run_dir: MayChange[LocalOutput]
    """Run folder for all files of the run. The same folder resumes the run."""
    precision: MayChange[Tracked[Literal["auto", "bf16", "fp32"]]] = "auto"
    """Arithmetic of the networks: "bf16", "fp32", or "auto", which is bf16 on a GPU and on a CPU
    with AMX. Weights, optimizers and quantizer are always float32."""
    allow_changes: OfOneStart[tuple[str, ...]] = ()
    """Settings, such as optimizer.learning_rate, that may change when the run resumes; any other
    change of a guarded setting is refused."""
    image_tokenizer: NeverChanges[Tracked[ImageTokenizerConfig]]
    """Architecture."""
    codebook: Tracked[CodebookConfig] = field(default_factory=CodebookConfig)
    """Upkeep of the codes."""
    objective: Tracked[TokenizerObjectiveConfig] = field(default_factory=TokenizerObjectiveConfig)
    """Loss."""
    optimizer: Tracked[OptimizerConfig]
    """AdamW and its schedule."""
    training: Tracked[ImageTokenizerTrainingConfig]
    """Training run."""
    checkpoint: MayChange[Tracked[CheckpointConfig]]
    reconstructions: MayChange[ReconstructionsConfig] = field(default_factory=ReconstructionsConfig)
    loader: MayChange[LoaderConfig] = field(default_factory=LoaderConfig)
    """Reading of one rank."""
    tracking: MayChange[TrackingConfig] = field(default_factory=TrackingConfig)
    profile: MayChange[ProfileConfig] = field(default_factory=ProfileConfig)
    stopping: MayChange[Tracked[StoppingConfig]] = field(default_factory=StoppingConfig)
    watch: MayChange[Tracked[WatchConfig]] = field(default_factory=WatchConfig)
    guards: Tracked[GuardsConfig] = field(default_factory=GuardsConfig)
    cluster: MayChange[ClusterConfig] = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_timeouts_in_order(self)
        self.optimizer.check_length(self.training.steps)
        if self.optimizer.groups:
            raise InputError(
                f"optimizer.groups with {len(self.optimizer.groups)} entries: only the transformer "
                "(launch/pretrain.py) has groups of parameters, leave them out"
            )
        self.codebook.check_quantizer(self.image_tokenizer.quantizer)
        self.objective.adversarial.check_image_size(self.image_tokenizer.image_size)
        if self.training.image_cache_bytes > 0 and self.loader.num_workers > 0:
            raise InputError(
                f"training.image_cache_bytes={self.training.image_cache_bytes} with "
                f"loader.num_workers={self.loader.num_workers}: only a rank that reads without "
                "workers caches pictures, so set loader.num_workers=0 if all of them fit, and else "
                "training.image_cache_bytes=0"
            )
        places = {"shards": self.shards, "reconstructions.shards": self.reconstructions.shards}
        for name, place in places.items():
            if place is not None and is_remote(place) and self.loader.cache_dir is None:
                raise InputError(
                    f"{name}={shown(place)} is remote and loader.cache_dir is null: set it to a "
                    "folder on this node's own disk, into which shards are copied"
                )

    @property
    def batch_sizes(self) -> BatchSizes:
        """Pictures of every optimizer step, all ranks together."""
        return BatchSizes(full=self.training.global_batch_size)

    def micro_batch_size(self, world_size: int) -> int:
        """Return the number of pictures per rank and forward pass.

        Raises:
            InputError: the ranks do not divide the batch, or passes a rank's share.
        """
        batch_size, micro_batch_size = (
            self.training.global_batch_size,
            self.training.micro_batch_size,
        )
        if batch_size % world_size:
            raise InputError(
                f"training.global_batch_size={batch_size} on {world_size} ranks: every rank needs "
                f"an equal share, so set a multiple of {world_size}, or start another number of "
                "ranks"
            )
        share = batch_size // world_size
        if micro_batch_size is None:
            return share
        if share % micro_batch_size:
            raise InputError(
                f"training.micro_batch_size={micro_batch_size} does not divide a rank's share of "
                f"{share} pictures (training.global_batch_size={batch_size} on {world_size} ranks):"
                " set it to a divisor, or to null for one pass"
            )
        return micro_batch_size

    def check_image_size(self, shards: str, shards_image_size: int) -> None:
        """Check that shards' pictures are as large as the architecture's.

        Args:
            shards: folder or URL of the shards.
            shards_image_size: pixels per side, from the shards' manifest.

        Raises:
            InputError: the shards' pictures are too small.
        """
        image_size = self.image_tokenizer.image_size
        if shards_image_size < image_size:
            raise InputError(
                f"the pictures in {shown(shards)} have {shards_image_size} pixels a side "
                f"where image_tokenizer.image_size={image_size}: set it to at most "
                f"{shards_image_size}, or build the shards with an image_size of at least "
                f"{image_size}"
            )
