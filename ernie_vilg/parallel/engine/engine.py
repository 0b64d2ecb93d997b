"""One optimizer step over many devices: two DeepSpeed engines behind one interface.

The plain engine (ZeRO 1, 2 or 3) runs all layers on each replica; the pipeline engine (ZeRO 1) runs
some of them on each stage. The training loop does not know which engine it has.

Source: DeepSpeed (https://github.com/deepspeedai/DeepSpeed), arXiv:1910.02054.
"""

import contextlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.model.initialization import original_name, split_dimension
from ernie_vilg.model.loss import Objective, Targets, num_losses, num_sums, text_targets
from ernie_vilg.parallel.engine.gradient_sums import attach_gradient_sums
from ernie_vilg.parallel.engine.library_patches import (
    leave_collectives_to_gloo,
    one_optimizer_of_zero1,
    silence_deepspeed,
    skip_reports,
)
from ernie_vilg.parallel.engine.optimizer import (
    LEARNING_RATE_FACTOR,
    WEIGHT_AVERAGE,
    build_optimizer,
)
from ernie_vilg.parallel.engine.pipeline_loss import PipelineLoss
from ernie_vilg.parallel.engine.settings import EngineSettings, deepspeed_config
from ernie_vilg.parallel.engine.snapshot import Snapshot
from ernie_vilg.parallel.engine.split_patterns import universal_checkpoint_info
from ernie_vilg.parallel.engine.staging import MicroBatch, Staging
from ernie_vilg.parallel.engine.update_guard import PendingDecision, guard_deepspeed
from ernie_vilg.parallel.engine.updates import Update, zero1_update
from ernie_vilg.parallel.engine.zero_shards import Piece, zero_shards
from ernie_vilg.parallel.layout.copies import Copy
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.storage.literal_paths import path_without_pattern
from ernie_vilg.system.seeds import seed_named

CHECKPOINT_TAG = "deepspeed"
"""Name of DeepSpeed's folder inside a checkpoint."""
PaddedBatch = tuple[Batch, int]
"""A micro-batch, and the number of its first rows that stand for pairs."""
_KINDS = {"exp_avg": "first moment", "exp_avg_sq": "second moment", WEIGHT_AVERAGE: "average"}


class Engine(ABC):
    """The model and its optimizer, sharded over the ranks of a layout."""

    def __init__(self, engine: Any, groups: Groups, settings: EngineSettings) -> None:
        self._engine = engine
        self.settings = settings
        """Settings that the engine was built from."""
        self.groups = groups
        self.num_micro_batches = settings.num_micro_batches
        """Micro-batches of this replica's last step; before it those of a full batch."""
        self.shards = zero_shards(engine.optimizer, groups.data_rank)
        """Tensors that this rank's optimizer updates."""
        # On a CPU the batches are where they are computed with.
        self._staging = Staging(groups.device) if groups.device.type == "cuda" else None
        attach_gradient_sums(engine.module, self.shards)
        self._guard = guard_deepspeed(
            self.shards,
            groups,
            settings.run.guards,
            read_loss=lambda: self._losses_so_far()[0],
            scales_loss=settings.precision == torch.float16,
            update=zero1_update(engine.module, self.shards, groups, settings.run),
        )

    def train_batch(self, batches: Sequence[Batch], learning_rate: float) -> Tensor:
        """Take one optimizer step.

        Args:
            batches: this replica's micro-batches on the CPU, as many as every other replica's.
            learning_rate: learning rate of this step, which groups multiply by their factors.

        Returns:
            this rank's `Losses.detached`, mean over its micro-batches, float32 [num_losses] on the
            device; zeros on ranks without the head. `mean_losses` gives those of the global batch.
        """
        if len(batches) != self.num_micro_batches:
            self._expect(len(batches))
        if self.settings.run.model.dropout:
            torch.manual_seed(self._dropout_seed())
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group[LEARNING_RATE_FACTOR]
        mean_text_targets = self._mean_text_targets(batches)
        micro_batches = [self._micro_batch(batch, mean_text_targets) for batch in batches]
        if self._staging is not None:
            micro_batches = self._staging.move(micro_batches)
        return self._step(micro_batches) / self.num_micro_batches

    def evaluate(self, batches: Sequence[PaddedBatch]) -> Tensor:
        """Sum the losses of held-out pairs, and learn nothing; all ranks must call.

        Args:
            batches: this replica's micro-batches on the CPU, as many as every other replica's.

        Returns:
            the sums of `Objective.sums` over all replicas, float64 [num_sums] on the CPU, the
            same on every rank.
        """
        sums = torch.zeros(
            num_sums(self.settings.run.model), dtype=torch.float64, device=self.groups.device
        )
        self._engine.eval()
        try:
            with torch.no_grad():
                self._evaluate(self._validation_batches(batches), len(batches), sums)
        finally:
            self._engine.train()
        dist.all_reduce(sums)  # all stages but the last add zeros
        return (sums / self.groups.tensor_size).cpu()

    def mean_losses(self, losses: Tensor) -> Tensor:
        """Return the global batch's losses; all ranks must call.

        Args:
            losses: the result of `train_batch`.

        Returns:
            mean over replicas, float32 [num_losses] on the CPU, the same on every rank.
        """
        total = losses.clone()
        dist.all_reduce(total)  # all stages but the last add zeros
        return (total / (self.groups.data_size * self.groups.tensor_size)).cpu()

    def gradient_norm(self) -> float:
        """Return the norm of the last step's whole gradient, before clipping."""
        return float(self._engine.get_global_grad_norm())

    def save(self, snapshot: Snapshot) -> None:
        """Copy this rank's part of the weights and optimizer state; all ranks must call."""
        with snapshot.catching(self._engine):
            self._engine.save_checkpoint(
                ".",
                tag=CHECKPOINT_TAG,
                client_state={
                    "universal_checkpoint_info": universal_checkpoint_info(self.settings.run.model)
                },
                save_latest=False,
            )

    def load(self, folder: Path) -> None:
        """Load the files of a snapshot that `save` took under the same layout; all ranks must call.

        The files contain pickles, whose hashes the caller must have checked.
        """
        groups = self._engine.optimizer.param_groups
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        with (
            path_without_pattern(folder) as path,
            contextlib.redirect_stdout(io.StringIO()),  # DeepSpeed prints a line per rank
        ):
            loaded, _ = self._engine.load_checkpoint(path, tag=CHECKPOINT_TAG)
        assert loaded is not None, f"DeepSpeed found no checkpoint in {folder}"
        # Loading restores the saved betas, decays and factors; overwrite them with this run's.
        for group, values in zip(self._engine.optimizer.param_groups, settings, strict=True):
            group.update(values)

    @property
    def deepspeed_engine(self) -> Any:
        """The wrapped engine of DeepSpeed, for other modules of `parallel`."""
        return self._engine

    @property
    def update(self) -> Update:
        """The guarded update, for other modules of `parallel`."""
        return self._guard.update

    @property
    def last_skip(self) -> Tensor:
        """Flag that is 1 if the guard skipped the last update, else 0; float32 [] on the device,
        the same on every rank.
        """
        return self._guard.last_skip

    def last_decision(self) -> PendingDecision:
        """Return whether the last update was skipped, and why; the same on every rank."""
        return self._guard.last_decision()

    def guard_state(self) -> dict[str, float]:
        """Return the guard's statistics of earlier losses as JSON numbers; equal on every rank.

        A resumed run that loads them decides as an uninterrupted run does.
        """
        return self._guard.state()

    def load_guard_state(self, state: Mapping[str, float]) -> None:
        """Continue from a result of `guard_state`; an empty one starts fresh statistics."""
        self._guard.load_state(state)

    def local_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield each parameter's name (layer index first) and this rank's part of it."""
        yield from self._engine.module.named_parameters()

    def replicated(self) -> Iterator[tuple[Copy, Tensor]]:
        """Yield the tensors that other ranks hold as well, in the same order on all of them."""
        groups, shards = self.groups, self.shards
        pieces = shards.pieces() if groups.tensor_size > 1 else {}
        for name, constant in self._engine.module.named_buffers():
            yield Copy(name, "constant", tensor=None, data=None), constant
        for name, parameter in self.local_parameters():
            is_split = split_dimension(name) is not None
            if shards.is_replicated(parameter):
                shared_name = original_name(name, self.settings.run.model)
                part = groups.tensor_rank if is_split else None
                yield Copy(shared_name, "weight", tensor=part, data=None), parameter
            if not is_split and parameter in pieces:
                for kind, tensor in _optimizer_tensors(shards.optimizer, pieces[parameter]):
                    yield Copy(name, kind, tensor=None, data=groups.data_rank), tensor

    def _expect(self, num_micro_batches: int) -> None:
        """Let DeepSpeed divide the loss of each pass by another number of passes."""
        size = num_micro_batches * self.settings.run.parallelism.micro_batch_size
        self._engine.set_train_batch_size(size * self.groups.data_size)
        self.num_micro_batches = num_micro_batches

    def _dropout_seed(self) -> int:
        """Return the seed of this step's dropout, the same in a resumed run.

        Tensor ranks must drop the same elements of replicated activations and different elements of
        sharded ones: with sequence parallelism all are sharded, without it all are replicated.
        """
        groups, run = self.groups, self.settings.run
        tensor_rank = groups.tensor_rank if run.parallelism.sequence_parallel else 0
        coordinates = (groups.pipeline_rank, groups.data_rank, tensor_rank)
        return seed_named(f"{run.training.seed}/{self._engine.global_steps}/{coordinates}")

    @abstractmethod
    def _step(self, micro_batches: list[MicroBatch]) -> Tensor:
        """Run forward, backward and update; return the summed losses, float32 [num_losses].

        Args:
            micro_batches: on the device.
        """

    @abstractmethod
    def _losses_so_far(self) -> Tensor:
        """Return the losses summed over this step's micro-batches so far, float32 [num_losses]."""

    @abstractmethod
    def _evaluate(self, micro_batches: Iterator[MicroBatch], count: int, sums: Tensor) -> None:
        """Run forward passes and add to the sums on ranks with the head.

        Args:
            micro_batches: on the device.
            count: number of them.
            sums: float64 [num_sums] on the device.
        """

    def _validation_batches(self, batches: Sequence[PaddedBatch]) -> Iterator[MicroBatch]:
        """Yield what this rank's stage uses of each batch, moved when it is its turn."""
        for batch, num_pairs in batches:
            micro_batch = self._micro_batch(batch, torch.tensor([num_pairs]))
            if self._staging is not None:
                (micro_batch,) = self._staging.move([micro_batch])
            yield micro_batch

    def _micro_batch(self, batch: Batch, count: Tensor) -> MicroBatch:
        """Return what this rank's stage uses of a batch.

        Args:
            batch: the micro-batch.
            count: third of its targets: the mean number of text targets, or the number of pairs.
        """
        stage, stages = self.groups.pipeline_rank, self.groups.pipeline_size
        inputs = (batch.text, batch.codes) if stage == 0 else ()
        return inputs, _targets(batch, count) if stage == stages - 1 else ()

    def _mean_text_targets(self, batches: Sequence[Batch]) -> Tensor:
        """Return the mean number of text targets per micro-batch of the step, float32 [1]."""
        count = torch.tensor([sum(text_targets(batch.text).sum().float() for batch in batches)])
        dist.all_reduce(count, group=self.groups.data_group)
        return count / (self.groups.data_size * self.num_micro_batches)


class PlainEngine(Engine):
    """Every replica runs all layers, under ZeRO 1, 2 or 3."""

    def __init__(
        self, model: nn.Module, objective: Objective, settings: EngineSettings, groups: Groups
    ) -> None:
        super().__init__(_start_engine(model, settings, mpu=_mpu(groups)), groups, settings)
        self._objective = objective
        self._losses = torch.zeros(num_losses(settings.run.model), device=groups.device)

    def _step(self, micro_batches: list[MicroBatch]) -> Tensor:
        self._losses.zero_()
        for index, (inputs, targets) in enumerate(micro_batches):
            output = self._engine(inputs)
            losses = self._objective(output, targets)
            if index == 0:
                self._guard.begin_step(len(micro_batches))
            self._losses += losses.detached()  # the guard reads them in the step
            # DeepSpeed would count passes over all steps, but steps may differ in their number.
            self._engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            self._engine.backward(losses.total)
            self._engine.step()
        return self._losses.clone()

    def _losses_so_far(self) -> Tensor:
        return self._losses

    def _evaluate(self, micro_batches: Iterator[MicroBatch], count: int, sums: Tensor) -> None:
        for inputs, targets in micro_batches:
            sums += self._objective.sums(self._engine(inputs), targets)


class PipelineEngine(Engine):
    """Every stage runs some of the layers, under ZeRO 1."""

    def __init__(
        self, model: nn.Module, loss: PipelineLoss, settings: EngineSettings, groups: Groups
    ) -> None:
        super().__init__(_start_engine(model, settings, mpu=None), groups, settings)
        skip_reports(self._engine)
        self._loss = loss

    def _step(self, micro_batches: list[MicroBatch]) -> Tensor:
        self._guard.begin_step(len(micro_batches))
        self._engine.train_batch(iter(micro_batches))
        return self._loss.collect()

    def _losses_so_far(self) -> Tensor:
        return self._loss.total

    def _evaluate(self, micro_batches: Iterator[MicroBatch], count: int, sums: Tensor) -> None:
        with self._loss.adding_to(sums):
            self._engine.eval_batch(
                micro_batches, num_micro_batches=count, reduce_output=None, bcast_loss=False
            )


def join_deepspeed() -> None:
    """Let DeepSpeed use torch's process groups; call it before anything else of DeepSpeed's."""
    leave_collectives_to_gloo()
    silence_deepspeed()
    deepspeed.init_distributed(dist_init_required=False)


def _start_engine(model: nn.Module, settings: EngineSettings, mpu: SimpleNamespace | None) -> Any:
    run = settings.run
    with (
        contextlib.redirect_stdout(io.StringIO()),  # DeepSpeed prints its memory use
        one_optimizer_of_zero1(),
    ):
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(
                model.named_parameters(),
                run.model,
                run.optimizer,
                run.training.ema_decay,
                run.training.frozen,
            ),
            mpu=mpu,
            config=deepspeed_config(settings),
        )
    return engine


def _mpu(groups: Groups) -> SimpleNamespace:
    """Return the axes of a layout as DeepSpeed's plain engine asks for them.

    It knows no pipeline: "model parallel" means tensor parallel there.
    """
    return SimpleNamespace(
        get_model_parallel_rank=lambda: groups.tensor_rank,
        get_model_parallel_world_size=lambda: groups.tensor_size,
        get_model_parallel_group=lambda: groups.tensor_group,
        get_data_parallel_rank=lambda: groups.data_rank,
        get_data_parallel_world_size=lambda: groups.data_size,
        get_data_parallel_group=lambda: groups.data_group,
    )


def _optimizer_tensors(optimizer: Optimizer, piece: Piece) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's piece of a parameter's float32 copy, moments and average."""
    yield "float32 weight", piece.shard[piece.in_shard]
    state = optimizer.state.get(piece.shard, {})
    for key in (key for key in _KINDS if key in state):
        yield _KINDS[key], state[key][piece.in_shard]


def _targets(batch: Batch, count: Tensor) -> Targets:
    pixels = () if batch.pixels is None else (batch.pixels,)
    return (batch.text, batch.codes, count, *pixels)
