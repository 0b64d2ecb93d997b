"""All settings of a pretraining run, and the checks that need no device."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ernie_vilg.config.batch_sizes import BatchSizes, BatchSizeStageConfig, check_growing
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.cluster import ClusterConfig
from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.config.health import HealthConfig
from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.profile import ProfileConfig
from ernie_vilg.config.run import require_timeouts_in_order
from ernie_vilg.config.schema import (
    FractionBelowOne,
    LocalInput,
    LocalOutput,
    MayChange,
    NaturalFloat,
    NaturalInt,
    NeverChanges,
    OfOneStart,
    PositiveInt,
    Settings,
    Tracked,
)
from ernie_vilg.config.statistics import StatisticsConfig
from ernie_vilg.config.stopping import StoppingConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.config.validation import ValidationConfig
from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import check_apart, check_folders, is_remote, missing_folders

FP8_MULTIPLE = 16
"""Divisor that a GPU's 8-bit products require of every dimension of their factors."""


@dataclass(frozen=True, kw_only=True)
class ParallelismConfig(Settings, section="parallelism"):
    """Layout of an optimizer step over devices."""

    tensor_parallel_size: PositiveInt = 1
    """Number of devices that split each matrix product."""
    pipeline_parallel_size: PositiveInt = 1
    """Number of pipeline stages (DeepSpeed). Above 1 the pipeline engine runs."""
    zero_stage: Literal[1, 2, 3] = 1
    """ZeRO over data-parallel ranks: 1 shards optimizer state, 2 gradients, 3 weights."""
    sequence_parallel: bool = False
    """Whether tensor-parallel ranks also split the tokens between their matrix products, for norms,
    dropout and residuals (arXiv:2205.05198)."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations that the backward pass recomputes: none; selective: attention probabilities, GELU
    and norm outputs; full: whole blocks."""
    offload_optimizer: bool = False
    """Whether optimizer state and the fp32 weights live in host memory (paper, section 3.2.2)."""
    micro_batch_size: PositiveInt
    """Pairs per data-parallel rank per forward pass; a pair gives two sequences."""
    global_batch_size: NeverChanges[PositiveInt]
    """Pairs per optimizer step, over all data-parallel ranks."""
    batch_size_warmup: MayChange[tuple[BatchSizeStageConfig, ...]] = ()
    """Smaller global batches of the first steps, in order; each keeps the micro-batch and has fewer
    forward passes per step. The learning rate does not follow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_growing(self.batch_size_warmup, self.global_batch_size)
        if self.sequence_parallel and self.tensor_parallel_size == 1:
            raise InputError(
                "parallelism.sequence_parallel=true with parallelism.tensor_parallel_size=1: it "
                "splits work among tensor-parallel ranks, raise their number or set it to false"
            )
        if self.pipeline_parallel_size > 1 and self.zero_stage != 1:
            raise InputError(
                f"parallelism.zero_stage={self.zero_stage} with parallelism."
                f"pipeline_parallel_size={self.pipeline_parallel_size}: set "
                "parallelism.zero_stage=1. DeepSpeed rejects 2 and 3 under a pipeline"
            )

    @property
    def batch_sizes(self) -> BatchSizes:
        """Pairs of every optimizer step, over all data-parallel ranks."""
        return BatchSizes(full=self.global_batch_size, warmup=self.batch_size_warmup)

    def data_parallel_size(self, world_size: int) -> int:
        """Return the number of replicas on `world_size` devices.

        Raises:
            InputError: tensor times pipeline size does not divide the number of devices.
        """
        devices = self.tensor_parallel_size * self.pipeline_parallel_size
        if world_size % devices:
            raise InputError(
                f"world size {world_size} is no multiple of parallelism.tensor_parallel_size="
                f"{self.tensor_parallel_size} x parallelism.pipeline_parallel_size="
                f"{self.pipeline_parallel_size} = {devices}: start a multiple of {devices} "
                "processes, or lower one of the two"
            )
        return world_size // devices

    def describe(self, world_size: int) -> str:
        """Return the layout of `world_size` ranks in words."""
        words = [
            f"tensor {self.tensor_parallel_size} x pipeline {self.pipeline_parallel_size} x data "
            f"{self.data_parallel_size(world_size)}",
            f"ZeRO {self.zero_stage}",
        ]
        words += ["sequence parallel"] if self.sequence_parallel else []
        if self.activation_checkpointing != "none":
            words.append(f"{self.activation_checkpointing} checkpointing")
        words += ["optimizer offloaded"] if self.offload_optimizer else []
        return ", ".join(words)

    def num_micro_batches(self, world_size: int) -> int:
        """Return the number of forward passes per optimizer step and replica, after a warm-up.

        Raises:
            InputError: a global batch is no multiple of micro-batch size times replicas.
        """
        for index, stage in enumerate(self.batch_size_warmup):
            key = f"parallelism.batch_size_warmup[{index}].global_batch_size"
            self._num_passes(key, stage.global_batch_size, world_size)
        return self._num_passes("parallelism.global_batch_size", self.global_batch_size, world_size)

    def _num_passes(self, key: str, batch_size: int, world_size: int) -> int:
        replicas = self.data_parallel_size(world_size)
        per_pass = self.micro_batch_size * replicas
        if batch_size % per_pass:
            lower = batch_size // per_pass * per_pass
            legal = " or ".join(str(size) for size in (lower, lower + per_pass) if size)
            raise InputError(
                f"{key}={batch_size} is no multiple of "
                f"parallelism.micro_batch_size={self.micro_batch_size} x {replicas} replicas = "
                f"{per_pass}: set {key}={legal}, or change the micro-batch"
            )
        return batch_size // per_pass


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings, section="training"):
    """Length of the run, its seed and its log."""

    steps: MayChange[PositiveInt]  # a longer run also stretches the learning rate's decay
    """Number of optimizer steps of the run, all restarts together."""
    seed: NeverChanges[int] = 0
    """Seed of the fresh weights."""
    log_every: MayChange[PositiveInt] = 10
    """Interval of lines in the log and in metrics.jsonl, steps."""
    ema_decay: FractionBelowOne = 0.0
    """Decay per step of the weights' moving average, which is sharded like the optimizer's state
    and exported with `average=true`; 0 turns it off."""
    frozen: NeverChanges[tuple[str, ...]] = ()
    """Patterns of names of parameters that keep their value, such as `*.text_embedding.*` or
    `*attention*`: `*` is any text, `?` one character."""


@dataclass(frozen=True, kw_only=True)
class SamplesConfig(Settings, section="samples"):
    """Pictures and captions that the model generates during training."""

    every: NaturalInt = 0
    """Interval of samples, steps; 0 turns them off."""
    pairs: LocalInput | None = None
    """Folder of raw pairs (captions.jsonl) whose captions are drawn and pictures captioned."""
    count: PositiveInt = 8
    """Number of pairs, the first of the file."""
    temperature: NaturalFloat = 0.0
    """Temperature of drawing: 0 takes the most likely code at every slot, which early in training
    draws the background; 1 samples from the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every and self.pairs is None:
            raise InputError(
                f"samples.every={self.every} needs samples.pairs, a folder with captions.jsonl; "
                "or set samples.every=0"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """All settings of a pretraining run."""

    run_dir: MayChange[LocalOutput]
    """Run folder for all files of the run. The same folder resumes the run."""
    precision: MayChange[Tracked[Literal["auto", "bf16", "fp16", "fp32"]]] = "auto"
    """Number format of weights and activations: bf16, fp16 (on a GPU, with dynamic loss scaling),
    fp32, or auto (bf16 on a GPU and on a CPU with AMX, else fp32). The optimizer's copy of the
    weights is always fp32."""
    linear_precision: Tracked[Literal["same", "fp8"]] = "same"
    """Number format of the factors in linear layers' products: same as `precision`, or fp8 (8-bit
    floats with one scale per tensor, on a GPU of compute capability 8.9 or above) in all blocks but
    the first and the last."""
    compile_blocks: MayChange[Tracked[bool]] = False
    """Whether torch.compile compiles the transformer's blocks."""
    dry_run: OfOneStart[bool] = False
    """Whether to build the model of every rank without memory or processes, print sizes and
    stop."""
    world_size: OfOneStart[PositiveInt | None] = None
    """Number of ranks of a dry run; null takes those that were started."""
    allow_changes: OfOneStart[tuple[str, ...]] = ()
    """Settings, such as optimizer.learning_rate, that may change when the run resumes; any other
    change of a guarded setting is refused."""
    initialize_from: NeverChanges[LocalInput | None] = None
    """Folder whose weights are the first ones of a new run: a weights folder, or a run folder,
    whose newest checkpoint counts. null draws fresh weights."""
    model: NeverChanges[Tracked[ModelConfig]]
    objective: Tracked[ObjectiveConfig] = field(default_factory=ObjectiveConfig)
    data: PretrainDataConfig
    parallelism: MayChange[Tracked[ParallelismConfig]]
    optimizer: Tracked[OptimizerConfig]
    training: Tracked[TrainingConfig]
    checkpoint: MayChange[Tracked[CheckpointConfig]]
    validation: MayChange[ValidationConfig] = field(default_factory=ValidationConfig)
    samples: MayChange[SamplesConfig] = field(default_factory=SamplesConfig)
    health: MayChange[HealthConfig] = field(default_factory=HealthConfig)
    statistics: MayChange[StatisticsConfig] = field(default_factory=StatisticsConfig)
    tracking: MayChange[TrackingConfig] = field(default_factory=TrackingConfig)
    profile: MayChange[ProfileConfig] = field(default_factory=ProfileConfig)
    stopping: MayChange[Tracked[StoppingConfig]] = field(default_factory=StoppingConfig)
    watch: MayChange[Tracked[WatchConfig]] = field(default_factory=WatchConfig)
    guards: Tracked[GuardsConfig] = field(default_factory=GuardsConfig)
    cluster: MayChange[ClusterConfig] = field(default_factory=ClusterConfig)
    gpu: MayChange[Tracked[GpuConfig | None]] = None
    """GPU model, a file of conf/gpu/, whose peak MFU refers to; null logs no MFU and plans no
    seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.world_size is not None and not self.dry_run:
            raise InputError(
                f"world_size={self.world_size} is for a dry run: add dry_run=true, or leave it "
                "out, the launcher sets the number of ranks"
            )
        if self.model.block_gradient_scale != 1 and self.precision != "fp16":
            raise InputError(
                f"model.block_gradient_scale={self.model.block_gradient_scale} with precision="
                f"{self.precision}: only float16 needs it, set precision=fp16 or the scale to 1"
            )
        self.model.lora.check_start(self.initialize_from, self.training.frozen)
        require_timeouts_in_order(self)
        self.optimizer.check_length(self.training.steps)
        if self.health.every and self.health.pairs is None and self.samples.pairs is None:
            raise InputError(
                f"health.every={self.health.every} needs health.pairs or samples.pairs, a folder "
                "with captions.jsonl; or set health.every=0"
            )
        self._check_validation()
        self._check_layout()
        if self.linear_precision == "fp8":
            self._check_fp8()

    def _check_validation(self) -> None:
        validation, every = self.validation, self.checkpoint.every
        if validation.is_of_average and not self.training.ema_decay:
            raise InputError(
                f"validation.best={validation.best} with training.ema_decay=0, which keeps no "
                "average of the weights: name the figure of the weights, or set training.ema_decay"
            )
        if validation.best is not None and validation.every % every and every % validation.every:
            raise InputError(
                f"validation.best={validation.best} with validation.every={validation.every} and "
                f"checkpoint.every={every}: a checkpoint is the best by a figure of its own step, "
                "so one interval must be a multiple of the other"
            )
        for name, location in validation.shards.items():
            if is_remote(location) and self.data.loader.cache_dir is None:
                raise InputError(
                    f"{validation.setting_of(name)} is a URL and data.loader.cache_dir is null: "
                    "set it to a folder on this node's own disk, into which shards are copied"
                )

    def _check_layout(self) -> None:
        self._check_split("model.num_heads", self.model.num_heads)
        self._check_split("model.text_vocab_size", self.model.text_vocab_size)
        self._check_split("model.codebook_size", self.model.codebook_size)
        layout = self.parallelism
        if self.compile_blocks and layout.zero_stage == 3:
            raise InputError(
                "compile_blocks=true with parallelism.zero_stage=3: DeepSpeed gathers the weights "
                "of each layer in hooks, which break the compiled graph, set compile_blocks=false "
                "or parallelism.zero_stage=1 or 2"
            )
        if layout.sequence_parallel:
            tokens = 2 * layout.micro_batch_size * self.model.seq_length
            if tokens % layout.tensor_parallel_size:
                raise InputError(
                    f"parallelism.sequence_parallel=true: the {tokens} tokens of a micro-batch (2 "
                    f"directions x parallelism.micro_batch_size={layout.micro_batch_size} x "
                    f"{self.model.seq_length} slots) are not divisible by parallelism."
                    f"tensor_parallel_size={layout.tensor_parallel_size}: set parallelism."
                    "micro_batch_size to a multiple of it"
                )
        stages = layout.pipeline_parallel_size
        if self.model.num_layers < stages:
            raise InputError(
                f"model.num_layers={self.model.num_layers} is below parallelism."
                f"pipeline_parallel_size={stages}: every stage needs a layer, lower the latter"
            )

    def _check_fp8(self) -> None:
        fp8, layout, model = "linear_precision=fp8", self.parallelism, self.model
        if self.precision not in ("auto", "bf16"):
            raise InputError(
                f"{fp8} with precision={self.precision}: everything else is computed in bf16 then, "
                "set precision=bf16 or linear_precision=same"
            )
        if self.gpu is not None and not self.gpu.float8:
            raise InputError(
                f"{fp8} with gpu.name={self.gpu.name}, which multiplies no 8-bit floats "
                "(gpu.float8=false): set linear_precision=same, or another gpu such as h100-80gb"
            )
        if model.num_layers < 3:
            raise InputError(
                f"{fp8} with model.num_layers={model.num_layers}: the first and the last block "
                "stay in bf16, so none would change, set linear_precision=same"
            )
        divisor = FP8_MULTIPLE * layout.tensor_parallel_size
        if model.hidden_size % divisor:
            raise InputError(
                f"{fp8} with model.hidden_size={model.hidden_size}: a GPU multiplies 8-bit "
                f"matrices in multiples of {FP8_MULTIPLE}, so it must be a multiple of {divisor} ("
                f"{FP8_MULTIPLE} x parallelism.tensor_parallel_size), or set linear_precision=same"
            )
        tokens = 2 * model.seq_length
        if layout.micro_batch_size * tokens % FP8_MULTIPLE:
            step = FP8_MULTIPLE // math.gcd(FP8_MULTIPLE, tokens)
            raise InputError(
                f"{fp8} with parallelism.micro_batch_size={layout.micro_batch_size}: its tokens (x "
                f"2 directions x {model.seq_length} slots) must be a multiple of {FP8_MULTIPLE}, "
                f"set it to a multiple of {step}, or linear_precision=same"
            )

    def _check_split(self, name: str, value: int) -> None:
        size = self.parallelism.tensor_parallel_size
        if value % size:
            raise InputError(
                f"{name}={value} is not divisible by parallelism.tensor_parallel_size={size}: "
                f"set {name} to a multiple of {size}, or another tensor_parallel_size"
            )

    @property
    def batch_sizes(self) -> BatchSizes:
        """Pairs of every optimizer step, over all data-parallel ranks."""
        return self.parallelism.batch_sizes

    def options_in_words(self) -> str:
        """Return how blocks are computed, if not as usual, to follow the words of a layout."""
        fp8 = ", inner blocks multiply in fp8" if self.linear_precision == "fp8" else ""
        return f"{fp8}, compiled blocks" if self.compile_blocks else fp8

    def check_paths(self) -> None:
        """Check that the run's inputs exist and do not contain the run folder.

        Raises:
            InputError: a folder is missing or contains the run folder; the message names its key.
        """
        for name, folder in self._folders_read().items():
            check_apart("run_dir", self.run_dir, name, folder)
        if self.initialize_from is not None:  # it need not exist when the run resumes
            check_apart("run_dir", self.run_dir, "initialize_from", self.initialize_from)
        check_folders(self._folders_read())

    def missing_folders(self) -> dict[str, str]:
        """Return the missing input folders by their keys."""
        return missing_folders(self._folders_read())

    def _folders_read(self) -> dict[str, str]:
        folders = {
            self.data.setting_of(name): location
            for name, location in self.data.locations.items()
            if not is_remote(location)
        }
        folders |= {
            "data.text_tokenizer": self.data.text_tokenizer,
            "data.image_tokenizer": self.data.image_tokenizer,
        }
        if self.validation.every:
            folders |= {
                self.validation.setting_of(name): location
                for name, location in self.validation.shards.items()
                if not is_remote(location)
            }
        if self.samples.every and self.samples.pairs is not None:
            folders["samples.pairs"] = self.samples.pairs
        if self.health.every and self.health.pairs is not None:
            folders["health.pairs"] = self.health.pairs
        return folders
