"""Metrics of steps: summed on the device, read once per log line.

Source: MFU is PaLM's (arXiv:2204.02311, appendix B): model FLOPs over peak FLOPs.
"""

import resource
import time
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.flops import training_flops_per_pair
from ernie_vilg.model.loss import NUM_TERMS
from ernie_vilg.parallel.engine.engine import Engine

Metrics = dict[str, Any]
"""Values by name: a float, or a list of floats along rows or slots, with None where nothing was
measured."""


@dataclass(kw_only=True)
class Meter:
    """Sums over the steps since the last log line.

    A step whose update was skipped is counted, but its losses are not: they do not describe the
    model. The first step after a start loads kernels and fills caches: its losses count, its time
    is reported apart and enters no speed, unless it is the only step of the line.
    """

    losses: Tensor
    """`Losses.detached` summed over the steps that were not skipped, float32 [num_losses] on the
    device; zeros at the start."""
    steps: int = 0
    """Steps since the last log line."""
    since: float = 0.0
    """`time.monotonic()` of the last log line."""
    first_step_seconds: float | None = None
    """Seconds of the first step after the start; None until it is made."""

    def __post_init__(self) -> None:
        self.since = time.monotonic()
        self._num_timed = 0
        self._num_skipped = torch.zeros((), device=self.losses.device)

    def add(self, losses: Tensor, is_skipped: Tensor) -> None:
        """Count one step; copies nothing to the host.

        Args:
            losses: result of `Engine.train_batch`, float32 [num_losses].
            is_skipped: `Engine.last_skip`, float32 [].
        """
        # Not a product: the losses of a skipped step may be NaN, and NaN * 0 is NaN.
        self.losses += torch.where(is_skipped > 0, 0.0, losses)
        self._num_skipped += is_skipped
        self.steps += 1
        self._num_timed += 1

    def end_first_step(self) -> None:
        """Time the first step, which was added; waits for the device once per start."""
        if self.losses.device.type == "cuda":
            torch.cuda.synchronize(self.losses.device)
        now = time.monotonic()
        self.first_step_seconds = now - self.since
        self.since, self._num_timed = now, 0

    def reset(self) -> None:
        """Discard the steps since the last log line."""
        self.losses.zero_()
        self._num_skipped.zero_()
        self.steps, self._num_timed, self.since = 0, 0, time.monotonic()

    def pause(self, seconds: float) -> None:
        """Exclude time that was not spent on steps."""
        self.since += seconds

    def read(self, engine: Engine, config: PretrainConfig) -> Metrics:
        """Return the metrics of the steps since the last call, at least one, and start again.

        All ranks must call.
        """
        sums = engine.mean_losses(self.losses)
        num_skipped = int(self._num_skipped)
        # Without another step, the first one is all that is known of the speed.
        seconds = (time.monotonic() - self.since) if self._num_timed else self.first_step_seconds
        seconds_per_step = max(seconds or 0.0, 1e-9) / max(self._num_timed, 1)
        metrics = loss_metrics(sums, self.steps - num_skipped, config.model)
        metrics |= {
            "skipped_steps": float(num_skipped),
            "gradient_norm": engine.gradient_norm(),
            "seconds_per_step": seconds_per_step,
        }
        metrics |= speed_metrics(1 / seconds_per_step, engine.groups.world_size, config)
        metrics |= memory_metrics(engine.groups.device)
        self.reset()
        return metrics


def loss_metrics(sums: Tensor, num_steps: int, config: ModelConfig) -> Metrics:
    """Return the losses by name.

    Args:
        sums: `Losses.detached` summed over steps, mean over replicas, float32 [num_losses] on the
            CPU.
        num_steps: number of steps in the sums; with 0, losses are NaN.
        config: the model.
    """
    count = num_steps if num_steps else float("nan")
    total, text_to_image, image_to_text, reconstruction = (sums[:NUM_TERMS] / count).tolist()
    by_image_row, by_position, share = sums[NUM_TERMS:].split(
        [config.image_grid_size, config.text_length, config.text_length]
    )
    metrics: Metrics = {
        "loss": total,
        "loss_text_to_image": text_to_image,
        "loss_image_to_text": image_to_text,
    }
    if config.reconstructor.is_end_to_end:
        metrics["loss_reconstruction"] = reconstruction
    metrics["loss_by_image_row"] = (by_image_row / count).tolist()
    metrics["loss_by_text_position"] = [
        loss / weight if weight else None
        for loss, weight in zip(by_position.tolist(), share.tolist(), strict=True)
    ]
    return metrics


def speed_metrics(steps_per_second: float, world_size: int, config: PretrainConfig) -> Metrics:
    """Return the run's speed, and its MFU if the kind of GPU is set."""
    pairs_per_second = steps_per_second * config.parallelism.global_batch_size
    flops_per_device = pairs_per_second * training_flops_per_pair(config.model) / world_size
    metrics: Metrics = {
        "pairs_per_second": pairs_per_second,
        "tokens_per_second": pairs_per_second * 2 * config.model.seq_length,
        "flops_per_second_per_device": flops_per_device,
    }
    if config.gpu is not None:
        metrics["mfu"] = flops_per_device / config.gpu.peak_flops
    return metrics


def memory_metrics(device: torch.device) -> Metrics:
    """Return this rank's memory in bytes, now and at its peak.

    It is the allocated memory of a GPU, or the resident memory of a process on a CPU.
    """
    if device.type == "cuda":
        peak, now = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    else:
        now = psutil.Process().memory_info().rss
        # Linux counts KiB, and does not update the peak at once.
        peak = max(now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"peak_memory_bytes": float(peak), "memory_bytes": float(now)}
