"""The image tokenizer's engine: networks, optimizers, averages, and the step that changes them.

Every rank holds all of it and computes gradients of its part of the batch. A step goes forward and
backward through the tokenizer, then, on the reconstructions of the same step, through the
discriminator; then all ranks decide together whether the step is made. If a loss or a gradient of
either network is not finite, or the reconstruction loss spikes, nothing changes on any rank: no
weight, no moment, no average and no count of codes. The host waits for the device only where codes
are moved.

Two things happen outside of that decision: before the first step codes start on encoder outputs,
and at intervals unused codes move there, after a step that was made.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.engine.snapshot import Snapshot
from ernie_vilg.parallel.engine.update_guard import PendingDecision, UpdateGuard
from ernie_vilg.parallel.layout.collectives import LEADER
from ernie_vilg.parallel.layout.copies import Copy
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.system.seeds import seed_named
from ernie_vilg.tokenizer_training.codebook import CodebookUpkeep
from ernie_vilg.tokenizer_training.flat_weights import FlatWeights
from ernie_vilg.tokenizer_training.passes import Passes, TokenizerPass
from ernie_vilg.tokenizer_training.results import StepSums, num_results
from ernie_vilg.tokenizer_training.saved_state import STATE_FILE, read_state
from ernie_vilg.tokenizer_training.update import NetworksUpdate, all_reduce_at_once
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.losses.tokenizer_loss import TokenizerLoss
from ernie_vilg.vqgan.pixels import from_bytes

_KINDS = {
    "weight": "weight",
    "exp_avg": "first moment",
    "exp_avg_sq": "second moment",
    WEIGHT_AVERAGE: "average",
}


logger = logging.getLogger(__name__)


class TokenizerEngine:
    """Engine of the image tokenizer; see `ernie_vilg.runs.step_engine.StepEngine`."""

    def __init__(
        self, config: TrainImageTokenizerConfig, groups: Groups, precision: torch.dtype
    ) -> None:
        """Build everything with fresh weights, the same on every rank.

        Args:
            config: settings of the run.
            groups: this rank's groups; every rank is a replica.
            precision: data type in which the networks compute.
        """
        self.groups = groups
        self.config = config
        """Settings of the run."""
        self._model = _fresh_model(config, groups.device)
        self._loss = _fresh_loss(config, groups.device)
        self._tokenizer = FlatWeights(self._model, config.optimizer, config.training.ema_decay)
        self._discriminator: FlatWeights | None = None
        if self._loss.discriminator is not None:
            self._discriminator = FlatWeights(
                self._loss.discriminator, config.optimizer, ema_decay=0.0
            )
        self._passes = Passes(
            self._model,
            self._loss,
            precision,
            self._mean_over_ranks,
            input_noise=config.objective.input_noise,
        )
        self._codes = CodebookUpkeep(
            self._model.quantizer, config.codebook, on_moved=self._restart_codes
        )
        self._networks = NetworksUpdate(
            groups.device, gradient_clipping=config.optimizer.gradient_clipping
        )
        self._guard = UpdateGuard(
            self._networks,
            groups,
            config.guards,
            read_loss=lambda: self._sums.spike_loss(),
        )
        peak = config.objective.adversarial.learning_rate or config.optimizer.learning_rate
        self._ratio = peak / config.optimizer.learning_rate
        self._num_micro_batches = 1
        self._sums = self._no_sums()
        self._steps = 0  # calls of train_batch, over all restarts

    @property
    def num_results(self) -> int:
        """Length of what `train_batch` returns; `results.metrics_of` names its numbers."""
        return num_results(self.config)

    def train_batch(self, batches: Sequence[Tensor], learning_rate: float) -> Tensor:
        """Take one step; all ranks must call.

        Args:
            batches: this rank's micro-batches, uint8 [batch, 3, height, width] on the CPU.
            learning_rate: the tokenizer's; the discriminator's follows in proportion.

        Returns:
            results of this rank, float32 [num_results] on the device.
        """
        device = self.groups.device
        self._num_micro_batches = len(batches)
        images = [to_device(pictures, device) for pictures in batches]
        if self._steps == 0:
            vectors = torch.cat([self._passes.encode(each) for each in images])
            self._codes.start(vectors, self._generator("codes"))
        passed = self._make_step(images, learning_rate)
        self._steps += 1
        if self._codes.is_due(self._steps, self.config.training.steps) and not self.last_skip:
            vectors = torch.cat([output.vectors for output in passed])
            moved = self._codes.revive(vectors, self._generator("codes"))
            logger.debug("step %d: %d unused codes moved", self._steps, moved)
        return self._results()

    def mean_losses(self, losses: Tensor) -> Tensor:
        """Return the mean over ranks of results, float32 on the CPU; all ranks must call."""
        return self._mean_over_ranks(losses).cpu()

    def gradient_norm(self) -> float:
        """Return the norm of the tokenizer's last gradient, before clipping."""
        return float(self._networks.norms_of_networks[0])

    def tokenizer(self) -> VQGAN:
        """Return a frozen copy of the tokenizer, with the average of its weights if one is kept."""
        model = copy.deepcopy(self._model)
        model.quantizer.mean_over_ranks = None
        model.load_state_dict(self._tokenizer.average(), strict=False)
        return model.eval().requires_grad_(False)

    def save(self, snapshot: Snapshot) -> None:
        """Copy the whole state on the leader, which is that of every rank; all ranks must call."""
        code_counts = self._codes.total_counts()
        if self.groups.rank != LEADER:
            return
        discriminator, averages = self._discriminator, self._loss.logit_averages
        snapshot.take(
            STATE_FILE,
            {
                "steps": self._steps,
                "tokenizer": self._tokenizer.state(),
                "discriminator": None if discriminator is None else discriminator.state(),
                "logit_averages": None if averages is None else dict(averages.state_dict()),
                "code_counts": code_counts,
            },
        )
        if self.groups.device.type == "cuda":
            torch.cuda.synchronize(self.groups.device)  # the snapshot's copies do not wait

    def load(self, folder: Path) -> None:
        """Continue from a snapshot of any number of ranks; all ranks must call.

        A discriminator that the snapshot lacks starts with fresh weights, which is logged.

        Raises:
            InputError: the snapshot's discriminator is another network.
        """
        state = read_state(folder)
        self._steps = state["steps"]
        self._tokenizer.load(state["tokenizer"])
        self._codes.load_counts(state["code_counts"])
        self._load_discriminator(state)
        if self._loss.logit_averages is not None and state["logit_averages"] is not None:
            self._loss.logit_averages.load_state_dict(state["logit_averages"])

    def _load_discriminator(self, state: Mapping[str, Any]) -> None:
        """Load the discriminator of a state, where there is one and the settings have one."""
        saved, own = state["discriminator"], self._discriminator
        if (saved is None) != (own is None) and self.groups.rank == LEADER:
            fate = "starts with fresh weights" if saved is None else "is dropped"
            logger.warning("objective.adversarial.weight has changed: the discriminator %s", fate)
        if saved is None or own is None:
            return
        if not own.fits(saved):
            raise InputError(
                "the checkpoint's discriminator is another network: set "
                "objective.adversarial.base_channels and num_layers to those of the checkpoint"
            )
        own.load(saved)

    def replicated(self) -> Iterator[tuple[Copy, Tensor]]:
        """Yield the tensors that other ranks hold as well: all but the counts of codes."""
        networks = {"tokenizer": self._tokenizer, "discriminator": self._discriminator}
        for name, weights in networks.items():
            if weights is None:
                continue
            for group, kind, values in weights.flat_tensors():
                yield Copy(f"{name}.{group}", _KINDS[kind], tensor=None, data=None), values
            yield from _buffers(name, weights.network)
        if self._loss.logit_averages is not None:
            yield from _buffers("logit_averages", self._loss.logit_averages)

    @property
    def last_skip(self) -> Tensor:
        """Flag that is 1 if the last step was skipped, else 0; float32 [] on the device."""
        return self._guard.last_skip

    def last_decision(self) -> PendingDecision:
        """Return whether the last step was skipped, and why; the same on every rank."""
        return self._guard.last_decision()

    def guard_state(self) -> dict[str, float]:
        """Return the guard's statistics of earlier losses as JSON numbers; equal on every rank."""
        return self._guard.state()

    def load_guard_state(self, state: Mapping[str, float]) -> None:
        """Continue from a result of `guard_state`; an empty one starts fresh statistics."""
        self._guard.load_state(state)

    def _make_step(self, images: list[Tensor], learning_rate: float) -> list[TokenizerPass]:
        """Make or skip a step; return the results of its forward passes."""
        self._sums = self._no_sums()
        self._guard.begin_step(len(images))
        passed: list[TokenizerPass] = []
        self._tokenizer.clear_gradients()
        for index, each in enumerate(images):
            passed.append(self._forward(each, index))
            self._backward(passed[-1].loss)
        self._networks.add(self._tokenizer, learning_rate)
        if self._discriminator is not None and self._loss.trains_discriminator(self._steps):
            self._discriminator.clear_gradients()
            for each, output in zip(images, passed, strict=True):
                self._backward(self._passes.discriminator(each, output.reconstruction, self._sums))
            self._networks.add(self._discriminator, self._ratio * learning_rate)
        self._update()
        return passed

    def _forward(self, images: Tensor, micro_batch: int) -> TokenizerPass:
        """Go forward through the tokenizer."""
        return self._passes.tokenizer(
            images,
            self._sums,
            step=self._steps,
            progress=min(1.0, self._steps / self.config.training.steps),
            generator=self._generator(f"noise/{self.groups.rank}/{micro_batch}"),
        )

    def _backward(self, loss: Tensor) -> None:
        """Go backward through either network."""
        loss.backward()

    def _update(self) -> None:
        """Make or skip the update of everything."""
        statistics = self._sums.statistics
        works = all_reduce_at_once(statistics.values())
        self._guard.make_update()
        for work in works:
            work.wait()
        is_made = self.last_skip == 0
        if "codes" in statistics:
            self._model.quantizer.update(statistics["codes"], is_made)
        if "logits" in statistics:
            self._loss.update(statistics["logits"], is_made)
        for codes in self._sums.codes:
            self._codes.count(codes, is_made)

    def _results(self) -> Tensor:
        norms = self._networks.norms_of_networks.float()
        of_discriminator = {"discriminator_gradient_norm": norms[1]} if len(norms) > 1 else {}
        return self._sums.results(
            self._num_micro_batches, self.groups.world_size, **of_discriminator
        )

    def _restart_codes(self, codes: Tensor) -> None:
        """Let the optimizer forget what it knows of codes that were set, int64 [codes]."""
        if self._model.quantizer.code_parameter is not None:
            self._tokenizer.restart_rows(self._model.quantizer.code_parameter, codes)

    def _generator(self, name: str) -> torch.Generator:
        """Return the random generator of a purpose in this step, the same in a resumed run."""
        generator = torch.Generator(self.groups.device)
        seed = seed_named(f"{self.config.training.seed}/{self._steps}/{name}")
        return generator.manual_seed(seed)

    def _no_sums(self) -> StepSums:
        return StepSums(self.config.image_tokenizer.codebook_size, self.groups.device)

    def _mean_over_ranks(self, values: Tensor) -> Tensor:
        """Return the mean over ranks of values without gradient; all ranks must call."""
        if self.groups.world_size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.groups.world_size


def to_device(pictures: Tensor, device: torch.device) -> Tensor:
    """Turn pictures uint8 [batch, 3, height, width] into float32 in [-1, 1], channels last."""
    images = from_bytes(pictures.to(device, non_blocking=True))
    return images.contiguous(memory_format=torch.channels_last)


def _fresh_model(config: TrainImageTokenizerConfig, device: torch.device) -> VQGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return VQGAN(config.image_tokenizer, config.codebook).to(device)


def _fresh_loss(config: TrainImageTokenizerConfig, device: torch.device) -> TokenizerLoss:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_named(f"{config.training.seed}/discriminator"))
        return TokenizerLoss(config.objective, device)


def _buffers(name: str, module: nn.Module) -> Iterator[tuple[Copy, Tensor]]:
    for of_buffer, value in module.named_buffers():
        yield Copy(f"{name}.{of_buffer}", "buffer", tensor=None, data=None), value
