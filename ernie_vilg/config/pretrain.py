"""Every setting of a pretraining run, and the checks that need no device.

Source: ours.
"""

from dataclasses import dataclass, field
from typing import Literal

from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.cluster import ClusterConfig
from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.config.health import HealthConfig
from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.schema import (
    LocalInput,
    LocalOutput,
    MayChange,
    NaturalFloat,
    NaturalInt,
    NeverChanges,
    OfOneStart,
    PositiveInt,
    Settings,
    ShareBelowOne,
    Tracked,
)
from ernie_vilg.config.stopping import StoppingConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import check_apart, check_folders, is_remote, missing_folders


@dataclass(frozen=True, kw_only=True)
class ParallelismConfig(Settings, section="parallelism"):
    """How one optimizer step is spread over devices."""

    tensor_parallel_size: PositiveInt = 1
    """Devices that share each matrix product (megatron-core)."""
    pipeline_parallel_size: PositiveInt = 1
    """Stages the layers are cut into (DeepSpeed). Above 1 the pipeline engine runs."""
    zero_stage: Literal[1, 2, 3] = 1
    """ZeRO over data-parallel ranks: 1 shards optimizer state, 2 gradients, 3 weights."""
    sequence_parallel: bool = False
    """Whether tensor-parallel ranks also share, token by token, the work between their matrix
    products: norms, dropout, residuals (arXiv:2205.05198)."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping: none; selective: attention
    probabilities, GELU and norm outputs; full: whole blocks."""
    offload_optimizer: bool = False
    """Whether optimizer state and the fp32 weights live in host memory (paper, section 3.2.2)."""
    micro_batch_size: PositiveInt
    """Pairs per data-parallel rank per forward pass; each gives two sequences."""
    global_batch_size: NeverChanges[PositiveInt]
    """Pairs per optimizer step, over all data-parallel ranks."""

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def data_parallel_size(self, world_size: int) -> int:
        """Return the number of replicas that `world_size` devices make.

        Raises:
            InputError: tensor and pipeline parallelism do not divide the devices.
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
        """Return the layout of so many ranks in words."""
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
        """Return the forward passes per optimizer step and replica.

        Raises:
            InputError: the global batch is no multiple of what the replicas take in one pass.
        """
        replicas = self.data_parallel_size(world_size)
        per_pass = self.micro_batch_size * replicas
        if self.global_batch_size % per_pass:
            lower = self.global_batch_size // per_pass * per_pass
            legal = " or ".join(str(size) for size in (lower, lower + per_pass) if size)
            raise InputError(
                f"parallelism.global_batch_size={self.global_batch_size} is no multiple of "
                f"parallelism.micro_batch_size={self.micro_batch_size} x {replicas} replicas = "
                f"{per_pass}: set parallelism.global_batch_size={legal}, or change the micro-batch"
            )
        return self.global_batch_size // per_pass


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings, section="training"):
    """How long to train and when to log."""

    steps: MayChange[PositiveInt]  # a longer run also stretches the learning rate's decay
    """Optimizer steps in the whole run, over all its restarts."""
    seed: NeverChanges[int] = 0
    """Names the fresh weights."""
    log_every: MayChange[PositiveInt] = 10
    """Steps between two lines in the log and in metrics.jsonl."""
    ema_decay: ShareBelowOne = 0.0
    """Decay per step of the moving average of the weights, which is sharded like the optimizer's
    state and exported with `average=true`; 0 keeps none."""


@dataclass(frozen=True, kw_only=True)
class SamplesConfig(Settings, section="samples"):
    """Pictures and captions that the model makes while it trains."""

    every: NaturalInt = 0
    """Steps between two rounds of samples; 0 turns them off."""
    pairs: LocalInput | None = None
    """Folder of raw pairs (captions.jsonl) whose captions are drawn and pictures captioned."""
    count: PositiveInt = 8
    """Pairs per round, from the top of the file."""
    temperature: NaturalFloat = 0.0
    """Of the drawn pictures: 0 takes the likeliest code at every slot, which early in training
    is the background of most pictures; 1 samples from the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every and self.pairs is None:
            raise InputError(
                f"samples.every={self.every} needs samples.pairs, a folder with captions.jsonl; "
                "or set samples.every=0"
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """One pretraining run."""

    run_dir: MayChange[LocalOutput]
    """Folder of everything the run leaves behind. The same folder resumes the run."""
    precision: MayChange[Tracked[Literal["auto", "bf16", "fp16", "fp32"]]] = "auto"
    """Of weights and activations: bf16, fp16 (on a GPU, with dynamic loss scaling), fp32, or
    auto (bf16 on a GPU and on a CPU with AMX, else fp32). The optimizer's copy of the weights is
    fp32 always."""
    compile_blocks: MayChange[Tracked[bool]] = False
    """Whether torch.compile compiles the transformer's blocks, once, for their one shape."""
    dry_run: OfOneStart[bool] = False
    """Build the model of every rank without memory or processes, print its sizes, and stop."""
    world_size: OfOneStart[PositiveInt | None] = None
    """Ranks that a dry run plans for; null means as many as were started."""
    allow_changes: OfOneStart[tuple[str, ...]] = ()
    """Settings, such as optimizer.learning_rate, that may differ from those the run folder was
    started with; any other change of what decides the weights is refused on resume."""
    model: NeverChanges[Tracked[ModelConfig]]
    objective: Tracked[ObjectiveConfig] = field(default_factory=ObjectiveConfig)
    data: PretrainDataConfig
    parallelism: MayChange[Tracked[ParallelismConfig]]
    optimizer: Tracked[OptimizerConfig]
    training: Tracked[TrainingConfig]
    checkpoint: MayChange[Tracked[CheckpointConfig]]
    samples: MayChange[SamplesConfig] = field(default_factory=SamplesConfig)
    health: MayChange[HealthConfig] = field(default_factory=HealthConfig)
    tracking: MayChange[TrackingConfig] = field(default_factory=TrackingConfig)
    stopping: MayChange[Tracked[StoppingConfig]] = field(default_factory=StoppingConfig)
    watch: MayChange[Tracked[WatchConfig]] = field(default_factory=WatchConfig)
    guards: Tracked[GuardsConfig] = field(default_factory=GuardsConfig)
    cluster: MayChange[ClusterConfig] = field(default_factory=ClusterConfig)
    gpu: MayChange[Tracked[GpuConfig | None]] = None
    """The kind of GPU that it runs on, a file of conf/gpu/: the peak that MFU is a share of, and
    what a plan of the run needs to know. null: neither MFU nor seconds are known."""

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
        if self.watch.step_timeout_seconds >= self.cluster.collective_timeout_seconds:
            raise InputError(
                f"watch.step_timeout_seconds={self.watch.step_timeout_seconds} is not below "
                f"cluster.collective_timeout_seconds={self.cluster.collective_timeout_seconds}: "
                "the run would end before it can say why, raise the latter"
            )
        if self.health.every and self.health.pairs is None and self.samples.pairs is None:
            raise InputError(
                f"health.every={self.health.every} needs health.pairs or samples.pairs, a folder "
                "with captions.jsonl; or set health.every=0"
            )
        self._check_layout()

    def _check_layout(self) -> None:
        self._check_split("model.num_heads", self.model.num_heads)
        self._check_split("model.text_vocab_size", self.model.text_vocab_size)
        self._check_split("model.codebook_size", self.model.codebook_size)
        layout = self.parallelism
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
        if self.compile_blocks and layout.tensor_parallel_size > 1:
            raise InputError(
                f"compile_blocks=true with parallelism.tensor_parallel_size="
                f"{layout.tensor_parallel_size}: megatron-core's layers break the compiled graph, "
                "set compile_blocks=false or parallelism.tensor_parallel_size=1"
            )
        stages = layout.pipeline_parallel_size
        if self.model.num_layers < stages:
            raise InputError(
                f"model.num_layers={self.model.num_layers} is below parallelism."
                f"pipeline_parallel_size={stages}: every stage needs a layer, lower the latter"
            )

    def _check_split(self, name: str, value: int) -> None:
        size = self.parallelism.tensor_parallel_size
        if value % size:
            raise InputError(
                f"{name}={value} is not divisible by parallelism.tensor_parallel_size={size}: "
                f"set {name} to a multiple of {size}, or another tensor_parallel_size"
            )

    def check_paths(self) -> None:
        """Check that what the run reads is there and apart from the run, before anything starts.

        Raises:
            InputError: a folder is missing or holds the run folder; the message names its key.
        """
        for name, folder in self._folders_read().items():
            check_apart("run_dir", self.run_dir, name, folder)
        check_folders(self._folders_read())

    def missing_folders(self) -> dict[str, str]:
        """Return the folders that the run reads and that are not there, by their keys."""
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
        if self.samples.every and self.samples.pairs is not None:
            folders["samples.pairs"] = self.samples.pairs
        if self.health.every and self.health.pairs is not None:
            folders["health.pairs"] = self.health.pairs
        return folders
