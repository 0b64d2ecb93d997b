"""The training loop.

Source: ours.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

import torch

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches import Batch
from ernie_vilg.model.loss import num_losses
from ernie_vilg.parallel.engine import Engine
from ernie_vilg.progress import duration
from ernie_vilg.training.checkpoint import Checkpoints
from ernie_vilg.training.metrics import Meter, Metrics
from ernie_vilg.training.schedule import learning_rate_at
from ernie_vilg.training.tracking import Tracker

logger = logging.getLogger(__name__)


class StepLog(Protocol):
    """The black box: which positions of the sequence each step trained on."""

    def append(self, step: int, first_position: int, num_positions: int) -> None:
        """Record a step that has just been made, counted from 1."""

    def flush(self) -> None:
        """Take all records to the device."""

    def close(self) -> None:
        """Flush and close."""


class SilentStepLog:
    """Of all ranks but the leader."""

    def append(self, step: int, first_position: int, num_positions: int) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Batches(Protocol):
    """Where batches come from: a pure function of the step."""

    def at(self, step: int) -> list[Batch]:
        """Return this replica's micro-batches of a step."""


def train(
    engine: Engine,
    batches: Batches,
    config: PretrainConfig,
    *,
    first_step: int,
    checkpoints: Checkpoints,
    ledger: StepLog,
    tracker: Tracker,
    draw_samples: Callable[[int], None],
) -> None:
    """Train from `first_step` to the end; all ranks must call.

    Args:
        engine: the model and its optimizer.
        batches: the training sequence.
        config: the run.
        first_step: steps taken so far.
        checkpoints: where to save.
        ledger: where every step's positions are written down.
        tracker: where metrics go.
        draw_samples: called with the step every `samples.every` steps, on all ranks.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    training, global_batch_size = config.training, config.parallelism.global_batch_size
    if first_step >= training.steps:
        logger.info("all %d steps are done: raise training.steps to go on", training.steps)
    meter = Meter(losses=torch.zeros(num_losses(config.model), device=engine.groups.device))
    for step in range(first_step, training.steps):
        started = time.monotonic()
        micro_batches = batches.at(step)
        data_seconds = time.monotonic() - started
        learning_rate = learning_rate_at(step, training.steps, config.optimizer)
        meter.add(engine.train_batch(micro_batches, learning_rate), data_seconds)
        done = step + 1
        ledger.append(done, step * global_batch_size, global_batch_size)
        if done % training.log_every == 0 or done == training.steps:
            metrics = {**meter.read(engine, config), "learning_rate": learning_rate}
            tracker.log(done, metrics)
            logger.info("%s", log_line(done, training.steps, metrics))
            _check_finite(done, metrics)
        pause_started = time.monotonic()
        if done % config.checkpoint.every == 0 or done == training.steps:
            ledger.flush()  # a checkpoint has no unknown steps behind it
            checkpoints.save(engine, done)
        if config.samples.every and done % config.samples.every == 0:
            draw_samples(done)
        meter.pause(time.monotonic() - pause_started)


def log_line(step: int, steps: int, metrics: Metrics) -> str:
    """Write a step's metrics on one line for people."""
    speed = (
        f"MFU {100 * metrics['mfu']:.1f}%"
        if "mfu" in metrics
        else f"{metrics['flops_per_second_per_device'] / 1e9:.1f} GFLOP/s per rank"
    )
    reconstruction = (
        f"reconstruction {metrics['loss_reconstruction']:.4f}  "
        if "loss_reconstruction" in metrics
        else ""
    )
    left = duration((steps - step) * metrics["seconds_per_step"])
    return (
        f"step {step}/{steps}  loss {metrics['loss']:.4f}  "
        f"text-to-image {metrics['loss_text_to_image']:.4f}  "
        f"image-to-text {metrics['loss_image_to_text']:.4f}  {reconstruction}"
        f"gradient norm {metrics['gradient_norm']:.2f}  rate {metrics['learning_rate']:.2e}  "
        f"{metrics['tokens_per_second']:,.0f} tokens/s  {speed}  {left} left"
    )


def _check_finite(step: int, metrics: Metrics) -> None:
    if not math.isfinite(metrics["loss"]):
        raise FloatingPointError(
            f"the loss is {metrics['loss']} at step {step}: resume with a lower "
            "optimizer.learning_rate or a longer optimizer.warmup_steps; the last checkpoint "
            "is of before"
        )
