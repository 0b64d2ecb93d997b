"""Held-out losses during training, the best checkpoint by one of them, and early stopping.

All ranks measure together, each replica its share of the pairs, on the engine as it stands: the
weights are neither gathered nor copied. The sums are those of one process whatever the layout.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.validation import AVERAGE
from ernie_vilg.data.batches.token_batches import Batch, TokenSequence
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_reader import SampleReader
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.model.loss import ValidationLosses, mean_losses
from ernie_vilg.observers.held_out import HeldOut
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.optimizer import WEIGHT_AVERAGE
from ernie_vilg.parallel.layout.collectives import LEADER, broadcast_from_leader
from ernie_vilg.preparation.lineage import held_out_sets
from ernie_vilg.runs.meter import Metrics
from ernie_vilg.runs.observation import Observation
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.validations import append_validation, best_step, read_validations
from ernie_vilg.training.callbacks import StepBoundary
from ernie_vilg.training.replica_batches import is_last_stage

_SEED = 0
"""Seed of the choice of pairs: that of no run, so that runs of all seeds measure the same pairs."""
_BLOCK_SHARDS = 16
"""Shards from which pairs are chosen together, likewise the same in all runs."""

logger = logging.getLogger(__name__)

Boundary = StepBoundary[PretrainConfig, Engine]


class HeldOutLosses:
    """The held-out sets of a run on one rank, and the values of the figure that matters so far."""

    def __init__(self) -> None:
        self._sets: dict[str, HeldOut] = {}
        self._values: dict[int, float] = {}  # of validation.best, by step
        self._done: int | None = None  # the last step that was validated

    def load(self, boundary: Boundary) -> Observation:
        """Read the pairs into memory, and the earlier validations; all ranks must call.

        Raises:
            InputError: a shard is damaged. Held-out pairs are never replaced by others.
        """
        config, groups = boundary.config, boundary.engine.groups
        for source in held_out_sets(config.data, config.validation):
            available, asked = source.manifest.num_samples, config.validation.pairs
            self._sets[source.name] = HeldOut.cut(
                available if asked is None else min(asked, available),
                micro_batch_size=config.parallelism.micro_batch_size,
                data_rank=groups.data_rank,
                data_size=groups.data_size,
                read=_reader(config, source, with_pixels=_needs_pixels(boundary)),
            )
            if groups.rank == LEADER:
                logger.info(
                    "validation %s: %d of %d pairs",
                    source.name,
                    self._sets[source.name].num_pairs,
                    available,
                )
        path = RunFolder(Path(config.run_dir)).validations
        figure = config.validation.best or f"{next(iter(self._sets))}/loss"
        earlier = broadcast_from_leader(read_validations(path, figure))
        # Steps after this one were undone, and will be made and validated again.
        made = {step: value for step, value in earlier.items() if step <= boundary.step}
        self._done = max(made, default=None)
        self._values = {step: value for step, value in made.items() if _is_saved(config, step)}
        return Observation(metrics={}, pictures={}, ends_run=self._reason_to_end(boundary))

    def measure(self, boundary: Boundary) -> Observation | None:
        """Measure the losses; all ranks must call."""
        if self._done == boundary.step:  # the last step was due anyway
            return None
        self._done = boundary.step
        config, engine = boundary.config, boundary.engine
        started = time.monotonic()
        losses = {name: _losses(engine, each) for name, each in self._sets.items()}
        if config.training.ema_decay:
            with engine.shards.showing(WEIGHT_AVERAGE):
                for name, each in self._sets.items():
                    losses[f"{name}/{AVERAGE}"] = _losses(engine, each)
        seconds = time.monotonic() - started
        figures = {
            f"{name}/{figure}": value
            for name, each in losses.items()
            for figure, value in _figures(each, config).items()
        }
        if engine.groups.rank == LEADER:
            path = RunFolder(Path(config.run_dir)).validations
            append_validation(path, boundary.step, figures)
            for name, measured in losses.items():
                logger.info("%s", _line(boundary.step, name, measured))
        ends_run = self._compete(boundary, figures)
        metrics: Metrics = {f"validation/{name}": value for name, value in figures.items()}
        for name, measured in losses.items():
            metrics[f"validation/{name}/loss_by_image_row"] = list(measured.by_image_row)
            metrics[f"validation/{name}/loss_by_text_position"] = list(measured.by_text_position)
        metrics["validation/seconds"] = seconds
        return Observation(metrics=metrics, pictures={}, ends_run=ends_run)

    def _compete(self, boundary: Boundary, figures: dict[str, float]) -> str:
        """Note the value of a step that has a checkpoint; return why the run is complete, or ""."""
        config, step = boundary.config, boundary.step
        best = config.validation.best
        if best is None or not _is_saved(config, step):
            return ""
        self._values[step] = figures[best]
        if best_step(self._values, self._values) == step and boundary.engine.groups.rank == LEADER:
            logger.info("step %d is the best so far: %s %.4f", step, best, figures[best])
        return self._reason_to_end(boundary)

    def _reason_to_end(self, boundary: Boundary) -> str:
        config = boundary.config.validation
        if not config.patience:
            return ""
        best = best_step(self._values, self._values) or 0
        since = sum(step > best for step in self._values)
        if since < config.patience:
            return ""
        lowest = f"{self._values[best]:.4f}, of step {best}" if best else "any number"
        return (
            f"{config.best} has not fallen below {lowest}, in {since} validations "
            f"(validation.patience={config.patience})"
        )


def _is_saved(config: PretrainConfig, step: int) -> bool:
    return config.checkpoint.is_due(step, config.training.steps)


def _needs_pixels(boundary: Boundary) -> bool:
    is_end_to_end = boundary.config.model.reconstructor.is_end_to_end
    return is_end_to_end and is_last_stage(boundary.engine.groups)


def _reader(
    config: PretrainConfig, source: DataSource, *, with_pixels: bool
) -> Callable[[np.ndarray], Batch]:
    """Return a function that reads pairs of a set by their index in a random order."""

    def read(rows: np.ndarray) -> Batch:
        sequence = TokenSequence(
            sources=(source,),
            mixture=(MixtureSegment(first_position=0, weights=(1.0,)),),
            seed=_SEED,
            shuffle_block_shards=_BLOCK_SHARDS,
            quarantine=Quarantine(),
            loader=replace(config.data.loader, damage="stop"),
            model=config.model,
            with_pixels=with_pixels,
        )
        with contextlib.closing(SampleReader(sequence)) as reader:
            return reader.read(rows).content

    return read


def _losses(engine: Engine, held_out: HeldOut) -> ValidationLosses:
    run = engine.settings.run
    return mean_losses(engine.evaluate(held_out.batches), run.model, run.objective)


def _figures(losses: ValidationLosses, config: PretrainConfig) -> dict[str, float]:
    figures = {
        "loss": losses.total,
        "loss_text_to_image": losses.text_to_image,
        "loss_image_to_text": losses.image_to_text,
    }
    if config.model.reconstructor.is_end_to_end:
        figures["loss_reconstruction"] = losses.reconstruction
    return figures


def _line(step: int, name: str, losses: ValidationLosses) -> str:
    return (
        f"step {step}  validation {name}: loss {losses.total:.4f}  text-to-image "
        f"{losses.text_to_image:.4f}  image-to-text {losses.image_to_text:.4f}  "
        f"({losses.num_pairs:,} pairs)"
    )
