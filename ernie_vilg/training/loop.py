"""The training loop: data, update and records of each step, and the decisions between two steps.

Between two steps all ranks agree on facts that only one of them may know: that the run should stop,
and that a checkpoint is still being written. The guards can send the loop back to the last
checkpoint in two ways. Losses and gradients that cannot be right are blamed on the data: the steps
since the checkpoint count as made, without an update, so that a step stays a range of positions.
Replicas that differ are blamed on a machine: the steps since are made again.

Steps count from 1: step s is the update after which s updates have been made.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import psutil
import torch

from ernie_vilg.checkpoint.checkpoints import Checkpoints
from ernie_vilg.config.run import RunConfig
from ernie_vilg.data.records.ledger import Ledger
from ernie_vilg.data.sequence.order import batch_size, first_position
from ernie_vilg.parallel.layout.collectives import LEADER, agree_max, broadcast_from_leader
from ernie_vilg.parallel.timing.step_times import StepTimes
from ernie_vilg.resilience.stopping import Stopping, StopReason
from ernie_vilg.resilience.stragglers import Stragglers
from ernie_vilg.runs.meter import Meter, Metrics, StepFigures
from ernie_vilg.runs.phases import Phase, Phases
from ernie_vilg.runs.schedule import learning_rate_at
from ernie_vilg.runs.step_engine import StepEngine
from ernie_vilg.system.garbage import collect_after, collected_by_hand
from ernie_vilg.tracking.tracker import Tracker
from ernie_vilg.training.callbacks import Callbacks
from ernie_vilg.training.guards import ReplicaMismatch, RollBack, RunGuard

logger = logging.getLogger(__name__)


class Batches(Protocol):
    """Source of batches: a pure function of the step."""

    def at(self, step: int) -> Sequence[Any]:
        """Return this replica's micro-batches of a step, from 1."""


class LineRecord(Protocol):
    """A record that is made of log lines and written with every checkpoint."""

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of a log line."""

    def write(self) -> None:
        """Write the record; all ranks must call."""


@dataclass(kw_only=True)
class Trainer:
    """The parts of one run, and the loop over its steps; all ranks must call."""

    config: RunConfig
    """Settings of the run."""
    engine: StepEngine
    """Weights and optimizer."""
    figures: StepFigures
    """Names of the figures of the engine's steps."""
    batches: Batches
    """Batches of this replica."""
    num_samples: int
    """Number of samples in all data sets."""
    data_metrics: Callable[[], Metrics]
    """Returns the numbers of damaged and quarantined samples; nothing on ranks but the leader."""
    checkpoints: Checkpoints
    """Checkpoints of the run."""
    guard: RunGuard
    """Limits on skipped updates, and the comparison of replicas."""
    stopping: Stopping
    """Requests to stop."""
    phases: Phases
    """Phase of this rank, for its watchdog and others."""
    step_times: StepTimes
    """Clock over the parts of a step."""
    stragglers: Stragglers
    """Detector of ranks that the others wait for."""
    ledger: Ledger | None
    """Record of every step's positions; on the leader alone."""
    tracker: Tracker
    """Destination of metrics."""
    callbacks: Callbacks[Any, Any]
    """Work between two steps."""
    record: LineRecord | None = None
    """Record of the speed, for the planner."""
    _meter: Meter = field(init=False)
    _num_mismatches: int = field(init=False, default=0)
    _first_step: Metrics = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        losses = torch.zeros(self.figures.num_losses, device=self.engine.groups.device)
        self._meter = Meter(losses=losses)

    def train(self, steps_made: int) -> tuple[int, StopReason]:
        """Train to the last step, or until a request to stop.

        Args:
            steps_made: steps made so far.

        Returns:
            the step of the newest checkpoint, and why the run stopped before its last step.

        Raises:
            FloatingPointError: updates were skipped again after going back to a checkpoint.
            ReplicaMismatch: ranks have differed too often.
        """
        with collected_by_hand():
            return self._train(steps_made)

    def _train(self, steps_made: int) -> tuple[int, StopReason]:
        steps = self.config.training.steps
        if steps_made >= steps:
            logger.info("all %d steps are done: raise training.steps to go on", steps)
        with self.step_times.paused():
            self.callbacks.at_start(steps_made)
        self._meter.reset()  # the time so far is not the first step's
        step, reason = steps_made, self._boundary()
        while step < steps and not reason and not self.callbacks.ends_run:
            step += 1
            try:
                with self.callbacks.around_step(step):
                    self._take_step(step)
                with self.step_times.paused():
                    self._after_step(step)
            except RollBack as fault:
                self._skip_steps(step, fault)
            except ReplicaMismatch as fault:
                step = self._repeat_steps(step, fault)
            reason = self._boundary()
        if reason and step < steps:
            return self._stop(step, reason), reason
        if self.callbacks.ends_run:
            logger.info("complete at step %d of %d: %s", step, steps, self.callbacks.ends_run)
        self._finish(step)
        self.callbacks.at_end(step)
        return step, StopReason.NONE

    def _boundary(self) -> StopReason:
        """Agree with the other ranks on whether to stop; commit a checkpoint that is written."""
        stop, is_writing = agree_max([self.stopping.code(), self.checkpoints.is_writing])
        reason = StopReason(stop)
        if not is_writing and reason is not StopReason.LOCK_LOST:
            self.checkpoints.commit_written()
        return reason

    def _take_step(self, step: int) -> None:
        """Make one step."""
        config = self.config
        num_samples = batch_size(step, config.batch_sizes)
        self.phases.enter(Phase.DATA, step)
        with self.step_times.reading():
            micro_batches = self.batches.at(step)
        self.phases.enter(Phase.STEP, step)
        learning_rate = learning_rate_at(step, config.training.steps, config.optimizer)
        losses = self.engine.train_batch(micro_batches, learning_rate)
        self._meter.add(losses, self.engine.last_skip, num_samples)
        is_log_due = step % config.training.log_every == 0 or step == config.training.steps
        if self._meter.first_step_seconds is None:
            self._end_first_step(step, is_log_due=is_log_due)
        if self.ledger is not None:
            self.ledger.append(step, first_position(step, config.batch_sizes), num_samples)
        self.guard.after_step(step)
        if is_log_due:
            self._log(step, learning_rate)

    def _end_first_step(self, step: int, *, is_log_due: bool) -> None:
        """Report the first step after a start, and leave its time out of the other figures."""
        self._meter.end_first_step()
        if not is_log_due:
            self.step_times.read()
        seconds = time.time() - psutil.Process().create_time()
        self._first_step = {
            "first_step_seconds": self._meter.first_step_seconds,
            "start_seconds": seconds,
        }
        logger.info(
            "step %d, the first, took %.1f s and ended %.1f s after the start of the process",
            step,
            self._meter.first_step_seconds,
            seconds,
        )

    def _after_step(self, step: int) -> None:
        """Compare replicas, save and observe the weights, each if it is due after a step."""
        started = time.monotonic()
        steps = self.config.training.steps
        # After a skipped update the weights are in doubt; going back to them would not help.
        is_wanted = step == steps or not self.guard.is_in_doubt
        is_save_due = is_wanted and self.config.checkpoint.is_due(step, steps)
        if is_save_due or self.guard.is_check_due(step):
            self.phases.enter(Phase.CHECK, step)
            self.guard.check_replicas(step)
        if is_save_due:
            self._save(step)
        self.callbacks.after_step(step)
        collect_after(step)
        self._meter.pause(time.monotonic() - started)

    def _save(self, step: int) -> None:
        self.phases.enter(Phase.SAVE, step)
        self.checkpoints.save(self.engine, step, state=self.guard.state())
        if self.record is not None:
            self.record.write()

    def _log(self, step: int, learning_rate: float) -> None:
        position = first_position(step + 1, self.config.batch_sizes)
        metrics: Metrics = {
            **self._meter.read(self.engine, self.figures),
            **self.step_times.read(),
            **self.phases.read(),
            **self.stragglers.read(step, self.step_times.work_seconds_per_step),
            "unix_seconds": time.time(),
            "learning_rate": learning_rate,
            "data_position": float(position),
            "epoch": position / self.num_samples,
            **self._batch_size(step),
            "skipped_updates": float(self.guard.num_skips),
            **self.data_metrics(),
            **self._checkpoint_metrics(),
            **self._first_step,
        }
        self._first_step = {}
        self.tracker.log(step, metrics)
        if self.record is not None:
            self.record.add(metrics)
        logger.info("%s", self.figures.line(step, self.config.training.steps, metrics))

    def _batch_size(self, step: int) -> Metrics:
        """Return the step's global batch, of a run in which it grows."""
        sizes = self.config.batch_sizes
        return {"global_batch_size": float(batch_size(step, sizes))} if sizes.warmup else {}

    def _checkpoint_metrics(self) -> Metrics:
        report = self.checkpoints.last_save
        if report is None:
            return {}
        return {
            "checkpoint_stall_seconds": report.stall_seconds,
            "checkpoint_write_seconds": report.write_seconds,
            "checkpoint_bytes": float(report.bytes),
            "checkpoint_snapshot_bytes": float(report.snapshot_bytes),
        }

    def _finish(self, step: int) -> None:
        self.phases.enter(Phase.END, step)
        self.checkpoints.finish()

    def _stop(self, step: int, reason: StopReason) -> int:
        """Save, if there are new steps and time for it; return the newest checkpoint's step."""
        newest = self.checkpoints.last_step or 0
        if reason is StopReason.LOCK_LOST:
            return newest
        report = self.checkpoints.last_save
        seconds = 0.0 if report is None else report.stall_seconds + report.write_seconds
        if step > newest and broadcast_from_leader(self.stopping.may_save(seconds)):
            logger.info("%s: saving a checkpoint of step %d, then stopping", reason, step)
            try:
                self.guard.check_replicas(step)
                self._save(step)
            except (RollBack, ReplicaMismatch) as fault:
                self._warn("%s; the last checkpoint stands", fault)
        self._finish(step)
        return self.checkpoints.last_step or 0

    def _skip_steps(self, step: int, fault: RollBack) -> None:
        """Reload the last checkpoint, and continue with the data after this step."""
        saved = self._go_back(fault)
        self._warn("steps %d to %d count as made, without an update", saved + 1, step)
        self._save(step)

    def _repeat_steps(self, step: int, fault: ReplicaMismatch) -> int:
        """Reload the last checkpoint to repeat the steps since; return its step."""
        self._num_mismatches += 1
        if self._num_mismatches > self.config.guards.max_rollbacks:
            raise fault
        saved = self._go_back(fault)
        self._warn("steps %d to %d are made again", saved + 1, step)
        self.tracker.go_back(saved)
        return saved

    def _go_back(self, fault: Exception) -> int:
        self._warn("%s; going back to the last checkpoint", fault)
        self.phases.enter(Phase.START, self.checkpoints.last_step or 0)
        saved = self.checkpoints.reload(self.engine)
        self.guard.load_state(self.checkpoints.restored_state)
        self._meter.reset()
        return saved

    def _warn(self, message: str, *values: object) -> None:
        """Log on the leader something that all ranks know."""
        if self.engine.groups.rank == LEADER:
            logger.warning(message, *values)
