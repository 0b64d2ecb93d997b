"""One optimizer step over many devices: two DeepSpeed engines behind one method.

The plain engine (ZeRO 1, 2 or 3) runs the whole list of layers on each replica; the pipeline
engine (ZeRO 1) gives each stage some of it. The training loop never asks which it has.

Source: DeepSpeed (https://github.com/deepspeedai/DeepSpeed), arXiv:1910.02054.
"""

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.model.loss import Objective, Targets, num_losses
from ernie_vilg.parallel.engine.library_patches import leave_collectives_to_gloo, silence_deepspeed
from ernie_vilg.parallel.engine.optimizer import build_optimizer
from ernie_vilg.parallel.engine.pipeline_loss import PipelineLoss
from ernie_vilg.parallel.engine.snapshot import Snapshot
from ernie_vilg.parallel.engine.split_patterns import universal_checkpoint_info
from ernie_vilg.parallel.engine.update_guard import PendingDecision, UpdateGuard
from ernie_vilg.parallel.engine.zero_shards import zero_shards
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.storage.literal_paths import path_without_pattern
from ernie_vilg.system.seeds import seed_named

CHECKPOINT_TAG = "deepspeed"
"""Name of the folder that DeepSpeed makes inside ours."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What both engines need to know."""

    model: ModelConfig
    """The model's shape."""
    parallelism: ParallelismConfig
    """The layout."""
    optimizer: OptimizerConfig
    """AdamW's settings."""
    ema_decay: float
    """Of the moving average of the weights; 0 keeps none."""
    guards: GuardsConfig
    """Which updates are left out."""
    seed: int
    """Names what dropout leaves out."""
    precision: torch.dtype
    """Of weights and activations."""
    num_micro_batches: int
    """Forward passes per step and replica."""

    @classmethod
    def of_run(
        cls, config: PretrainConfig, world_size: int, precision: torch.dtype
    ) -> "EngineSettings":
        """Return those of a run on so many ranks."""
        return cls(
            model=config.model,
            parallelism=config.parallelism,
            optimizer=config.optimizer,
            ema_decay=config.training.ema_decay,
            guards=config.guards,
            seed=config.training.seed,
            precision=precision,
            num_micro_batches=config.parallelism.num_micro_batches(world_size),
        )


class Engine(ABC):
    """The model, its optimizer, and the ranks they are spread over."""

    def __init__(self, engine: Any, groups: Groups, settings: EngineSettings) -> None:
        self._engine = engine
        self._settings = settings
        self.groups = groups
        self.num_micro_batches = settings.num_micro_batches
        self.shards = zero_shards(engine.optimizer, groups.data_rank)
        """What this rank's optimizer updates."""
        self._guard = UpdateGuard(
            self.shards,
            groups,
            settings.guards,
            read_loss=lambda: self._losses_so_far()[0],
            num_micro_batches=settings.num_micro_batches,
            scales_loss=settings.precision == torch.float16,
        )

    def train_batch(self, batches: Sequence[Batch], learning_rate: float) -> Tensor:
        """Take one optimizer step.

        Args:
            batches: this replica's micro-batches, `num_micro_batches` of them, on the CPU.
            learning_rate: of this step.

        Returns:
            this rank's `Losses.detached`, mean over its micro-batches, float32 [4] on the
            device; zeros on ranks without the head. The mean over replicas is the loss of the
            global batch: see `mean_losses`.
        """
        if self._settings.model.dropout:
            torch.manual_seed(self._dropout_seed())
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        mean_text_targets = self._mean_text_targets(batches)
        micro_batches = [
            ((batch.text, batch.codes), _targets(batch, mean_text_targets)) for batch in batches
        ]
        return self._step(micro_batches) / self.num_micro_batches

    def mean_losses(self, losses: Tensor) -> Tensor:
        """Return the mean over replicas of what `train_batch` returned; all ranks must call.

        Returns:
            float32 [4] on the CPU, the same on every rank.
        """
        total = losses.clone()
        dist.all_reduce(total)  # every stage but the last adds zeros
        return (total / (self.groups.data_size * self.groups.tensor_size)).cpu()

    def gradient_norm(self) -> float:
        """Return the norm of the last step's whole gradient, before clipping."""
        return float(self._engine.get_global_grad_norm())

    def save(self, snapshot: Snapshot) -> None:
        """Copy this rank's share of weights and optimizer state; all ranks must call."""
        with snapshot.catching(self._engine):
            self._engine.save_checkpoint(
                ".",
                tag=CHECKPOINT_TAG,
                client_state={
                    "universal_checkpoint_info": universal_checkpoint_info(self._settings.model)
                },
                save_latest=False,
            )

    def load(self, folder: Path) -> None:
        """Read the files of a snapshot that `save` took under the same layout; all ranks must call.

        The files hold pickles: the caller has checked their hashes.
        """
        groups = self._engine.optimizer.param_groups
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        with (
            path_without_pattern(folder) as path,
            contextlib.redirect_stdout(io.StringIO()),  # DeepSpeed prints a line per rank
        ):
            loaded, _ = self._engine.load_checkpoint(path, tag=CHECKPOINT_TAG)
        assert loaded is not None, f"DeepSpeed found no checkpoint in {folder}"
        # The file's betas and decay come back with it; those of this run's settings hold.
        for group, values in zip(self._engine.optimizer.param_groups, settings, strict=True):
            group.update(values)

    @property
    def deepspeed_engine(self) -> Any:
        """DeepSpeed's own engine, for what in `parallel` looks inside it."""
        return self._engine

    @property
    def settings(self) -> EngineSettings:
        """What the engine was built from."""
        return self._settings

    @property
    def last_skip(self) -> Tensor:
        """1 where the guard kept the last step from changing the weights, else 0; float32 [] on
        the device, the same on every rank.
        """
        return self._guard.last_skip

    def last_decision(self) -> PendingDecision:
        """Return why the last step changed the weights or skipped, the same on every rank."""
        return self._guard.last_decision()

    def guard_state(self) -> dict[str, float]:
        """Return what the guard knows of earlier losses, as JSON numbers, the same on every rank.

        A resumed run that loads it decides as an uninterrupted one does.
        """
        return self._guard.state()

    def load_guard_state(self, state: Mapping[str, float]) -> None:
        """Take over what `guard_state` returned; nothing where it is empty."""
        self._guard.load_state(state)

    def local_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the name (layer index first) and this rank's share of each parameter."""
        yield from self._engine.module.named_parameters()

    def _dropout_seed(self) -> int:
        """Return the seed of this step's dropout, which a resumed run finds again.

        Tensor ranks must leave out the same values of what they all hold, and different ones of
        what they share: with sequence parallelism that is everything, without it nothing.
        """
        groups, settings = self.groups, self._settings
        tensor_rank = groups.tensor_rank if settings.parallelism.sequence_parallel else 0
        place = (groups.pipeline_rank, groups.data_rank, tensor_rank)
        return seed_named(f"{settings.seed}/{self._engine.global_steps}/{place}")

    @abstractmethod
    def _step(self, micro_batches: list[tuple[tuple[Tensor, Tensor], Targets]]) -> Tensor:
        """Run forward, backward and update; return the summed losses, float32 [4]."""

    @abstractmethod
    def _losses_so_far(self) -> Tensor:
        """Return the losses summed over the step's micro-batches so far, float32 [4]."""

    def _mean_text_targets(self, batches: Sequence[Batch]) -> Tensor:
        """Return the step's text targets per micro-batch over all replicas, float32 [1]."""
        count = torch.tensor([float(sum(batch.num_text_targets for batch in batches))])
        dist.all_reduce(count, group=self.groups.data_group)
        return count / (self.groups.data_size * self.num_micro_batches)


class PlainEngine(Engine):
    """Every replica runs all layers; ZeRO 1, 2 or 3."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: EngineSettings,
        groups: Groups,
    ) -> None:
        super().__init__(_start_engine(model, settings, mpu=groups), groups, settings)
        self._objective = objective
        self._losses = torch.zeros(num_losses(settings.model), device=groups.device)

    def _step(self, micro_batches: list[tuple[tuple[Tensor, Tensor], Targets]]) -> Tensor:
        device = self.groups.device
        self._losses.zero_()
        for pair, targets in micro_batches:
            output = self._engine(tuple(tensor.to(device) for tensor in pair))
            losses = self._objective(output, tuple(tensor.to(device) for tensor in targets))
            self._losses += losses.detached()  # before the step, which the guard judges by them
            self._engine.backward(losses.total)
            self._engine.step()
        return self._losses.clone()

    def _losses_so_far(self) -> Tensor:
        return self._losses


class PipelineEngine(Engine):
    """Every stage runs some of the layers; ZeRO 1."""

    def __init__(
        self,
        model: nn.Module,
        loss: PipelineLoss,
        settings: EngineSettings,
        groups: Groups,
    ) -> None:
        super().__init__(_start_engine(model, settings, mpu=None), groups, settings)
        self._loss = loss

    def _step(self, micro_batches: list[tuple[tuple[Tensor, Tensor], Targets]]) -> Tensor:
        self._engine.train_batch(iter(micro_batches))
        return self._loss.collect()

    def _losses_so_far(self) -> Tensor:
        return self._loss.total


def join_deepspeed() -> None:
    """Hand DeepSpeed the process groups that torch already has; before any of its modules."""
    leave_collectives_to_gloo()
    silence_deepspeed()
    deepspeed.init_distributed(dist_init_required=False)


def _start_engine(model: nn.Module, settings: EngineSettings, mpu: Groups | None) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its use of memory
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(
                model.named_parameters(), settings.model, settings.optimizer, settings.ema_decay
            ),
            mpu=mpu,
            config=deepspeed_config(settings),
        )
    return engine


def deepspeed_config(settings: EngineSettings) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a run; nothing else configures it."""
    layout = settings.parallelism
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": settings.num_micro_batches,
        "gradient_clipping": settings.optimizer.gradient_clipping,
        "zero_optimization": {"stage": layout.zero_stage},
        "steps_per_print": None,
    }
    if settings.ema_decay:
        # DeepSpeed knows optimizers by their exact type, and ours is a subclass of AdamW.
        config["zero_allow_untested_optimizer"] = True
    if layout.offload_optimizer:
        config["zero_optimization"]["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": torch.cuda.is_available(),
        }
        # torch's AdamW is ours; DeepSpeed's own for CPUs would be compiled at the start.
        config["zero_force_ds_cpu_optimizer"] = False
    if layout.sequence_parallel:
        # Between stages DeepSpeed would send a share of what it takes for alike on tensor ranks.
        config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    if settings.precision == torch.bfloat16:
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if settings.precision == torch.float16:
        config["fp16"] = {"enabled": True}  # loss_scale 0, its default: dynamic
    return config


def _targets(batch: Batch, mean_text_targets: Tensor) -> Targets:
    pixels = () if batch.pixels is None else (batch.pixels,)
    return (batch.text, batch.codes, mean_text_targets, *pixels)
