"""Skipped updates and disagreeing ranks: when a run goes back to a checkpoint, and when it stops.

A single bad update is skipped and recorded. Several in a row mean that the weights themselves have
gone wrong: the run goes back to its last checkpoint and skips the batches since. If that does not
help, it stops. All ranks make the same decisions, so all raise the same error at the same step.

Source: PaLM skips batches after going back in the same way (arXiv:2204.02311, section 5.1).
"""

import logging
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.data.records.skipped_updates import (
    RecentOrigins,
    Skip,
    SkipLog,
    finite,
    name_samples,
)
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.sample_sequence import SampleSequence
from ernie_vilg.parallel.engine.update_guard import Decision, PendingDecision
from ernie_vilg.parallel.layout.collectives import LEADER
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.parallel.state.compare_replicas import Difference, ReplicaReport, check_replicas
from ernie_vilg.runs.step_engine import StepEngine

_WORDS = {
    "nan": "the loss or a gradient is not a number",
    "inf": "the loss or a gradient is infinite",
    "spike": "the loss jumped",
}
_MAX_NAMED = 5
"""Largest number of differences, or of ranks, that a message names."""

logger = logging.getLogger(__name__)


class RollBack(Exception):  # noqa: N818, a request to the training loop
    """Too many updates in a row were skipped: go back to the last checkpoint."""

    def __init__(self, step: int, reason: str) -> None:
        """Take the last skipped update.

        Args:
            step: step of the update, from 1.
            reason: nan, inf or spike.
        """
        super().__init__(f"step {step}: {_WORDS[reason]}")
        self.step = step
        self.reason = reason


class ReplicaMismatch(RuntimeError):  # noqa: N818, names the state that was found
    """Ranks that should hold the same values hold different ones."""


@dataclass(frozen=True, kw_only=True)
class SkipWriter:
    """Writer of a replica's skipped updates, on one rank of the replica."""

    log: SkipLog
    """File of the replica."""
    recent: RecentOrigins
    """Origins of the samples of the last steps; the loader adds those of each step."""
    sequence: SampleSequence[Any]
    """Training sequence, to which the origins belong."""
    replica: ReplicaSlice
    """Positions of the replica."""

    def write(self, step: int, decision: Decision) -> None:
        """Record a skipped update.

        Args:
            step: step of the update, from 1.
            decision: decision to skip it.
        """
        origins, positions = self.recent.at(step), self.replica.positions(step)
        skip = Skip(
            step=step,
            reason=decision.reason,
            loss=finite(decision.loss),
            limit=finite(decision.limit),
            gradient_norm=finite(decision.gradient_norm),
            ranks=decision.ranks,
            first_position=int(positions[0]),
            num_positions=len(positions),
            samples=() if origins is None else name_samples(self.sequence, origins),
        )
        self.log.write(skip)


class RunGuard:
    """Counter of skipped updates; every rank has one, and all count the same."""

    def __init__(
        self,
        engine: StepEngine,
        config: GuardsConfig,
        writer: SkipWriter | None = None,
        *,
        planned_changes: Collection[int] = (),
    ) -> None:
        """Start without a skipped update.

        Args:
            engine: the engine, which skips updates.
            config: the limits.
            writer: writer of the replica's log, on the rank that writes it.
            planned_changes: steps after which the data changes as planned, so that the loss may
                jump: losses up to there say nothing about those after.
        """
        self._engine = engine
        self._planned_changes = frozenset(planned_changes)
        self._config = config
        self._writer = writer
        # A GPU runs one step behind the host; waiting for its last decision would stall it.
        self._delay = 1 if engine.groups.device.type == "cuda" else 0
        self._pending: deque[tuple[int, PendingDecision]] = deque()
        self._last_skip: tuple[int, str] | None = None
        self._num_in_a_row = 0
        self._num_skips = 0
        self._num_rollbacks = 0

    @property
    def num_skips(self) -> int:
        """Number of updates that the run has skipped so far, over all launches."""
        return self._num_skips

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last known update was skipped, so that no checkpoint should be saved."""
        return self._num_in_a_row > 0

    def after_step(self, step: int) -> None:
        """Read the decision about a step; on GPUs, about the step before it.

        Args:
            step: the step that was just made, from 1.

        Raises:
            RollBack: more than `max_skips` updates in a row were skipped.
            FloatingPointError: that happened more than `max_rollbacks` times.
        """
        self._pending.append((step, self._engine.last_decision()))
        while len(self._pending) > self._delay:
            self._read(*self._pending.popleft())
        if self._last_skip is not None and self._num_in_a_row > self._config.max_skips:
            self._go_back(*self._last_skip)
        if step in self._planned_changes:
            self._engine.load_guard_state({})
            if self._engine.groups.rank == LEADER:
                logger.info("step %d: the data changes after it, no loss is a spike at first", step)

    def is_check_due(self, step: int) -> bool:
        """Return whether replicas must be compared after a step even if nothing is saved."""
        every = self._config.replica_check_every
        return bool(every) and step % every == 0

    def check_replicas(self, step: int) -> None:
        """Compare the values that several ranks hold; all ranks must call.

        Args:
            step: the last step made, for the message.

        Raises:
            ReplicaMismatch: they differ; the message names ranks and parameters.
        """
        report = check_replicas(self._engine)
        if report.differences:
            raise ReplicaMismatch(describe(report, step))

    def state(self) -> dict[str, Any]:
        """Return, as JSON values, the state from which a resumed run decides as this one would."""
        while self._pending:
            self._read(*self._pending.popleft())
        return {
            "skips_in_a_row": self._num_in_a_row,
            "skips": self._num_skips,
            "losses": self._engine.guard_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a result of `state`; an empty one is the state of a new run.

        Later skipped updates, and the rollbacks of this launch, stay counted.
        """
        self._pending.clear()
        self._last_skip = None
        self._num_in_a_row = int(state.get("skips_in_a_row", 0))
        self._num_skips = max(self._num_skips, int(state.get("skips", 0)))
        self._engine.load_guard_state(state.get("losses", {}))

    def _read(self, step: int, pending: PendingDecision) -> None:
        decision = pending.read()
        if decision.is_made:
            self._last_skip, self._num_in_a_row = None, 0
            return
        self._last_skip = step, decision.reason
        self._num_skips += 1
        self._num_in_a_row += 1
        if self._engine.groups.rank == LEADER:
            logger.warning("%s", skip_line(step, decision))
        if self._writer is not None:
            self._writer.write(step, decision)

    def _go_back(self, step: int, reason: str) -> None:
        self._pending.clear()
        self._last_skip, self._num_in_a_row = None, 0
        self._num_rollbacks += 1
        if self._num_rollbacks <= self._config.max_rollbacks:
            raise RollBack(step, reason)
        raise FloatingPointError(
            f"step {step}: {_WORDS[reason]}, and going back to a checkpoint "
            f"{self._config.max_rollbacks} times (guards.max_rollbacks) did not help. The samples "
            "are in ledger/skips-*.jsonl: put bad ones into quarantine.jsonl; or resume with a "
            "lower optimizer.learning_rate or gradient_clipping; or, if the loss may rise, as "
            "after a change of the data, with a larger guards.spike_deviations (0: no limit)"
        )


def skip_line(step: int, decision: Decision) -> str:
    """Return the log line about a skipped update."""
    reason = _WORDS[decision.reason]
    if decision.reason == "spike":
        reason += f" to {decision.loss:.4f}, above the limit of {decision.limit:.4f}"
    elif decision.ranks:
        shown = ", ".join(str(rank) for rank in decision.ranks[:_MAX_NAMED])
        more = ", ..." if len(decision.ranks) > _MAX_NAMED else ""
        reason += f" (on rank {shown}{more})"
    return f"step {step}: the update is skipped, {reason}"


def describe(report: ReplicaReport, step: int) -> str:
    """Return a message that names differing ranks and parameters, and says what to do."""
    settled = [each for each in report.differences if each.is_settled]
    shown = (settled or list(report.differences))[:_MAX_NAMED]
    lines = [f"step {step}: ranks that must hold the same values do not"]
    lines += [f"  {_sentence(each, report)}" for each in shown]
    if len(report.differences) > len(shown):
        lines.append(f"  and {len(report.differences) - len(shown)} more")
    lines.append(
        "the likeliest cause is a fault of such a rank's memory or network: if it happens again, "
        "start without its machine; at the last checkpoint all ranks agreed"
    )
    return "\n".join(lines)


def _sentence(difference: Difference, report: ReplicaReport) -> str:
    subject = f"{difference.kind} {difference.name}"
    suspects = " and ".join(report.ranks[rank] for rank in difference.suspects)
    if not difference.is_settled:
        return f"{subject}: the ranks differ, and no majority says which is wrong: {suspects}"
    others = len(difference.holders) - len(difference.suspects)
    verb = "differs" if len(difference.suspects) == 1 else "differ"
    return f"{subject}: {suspects} {verb} from {others} others"


def skip_writer(
    ledger: Path, sequence: SampleSequence[Any], groups: Groups, batch_sizes: BatchSizes
) -> SkipWriter | None:
    """Return the writer of a replica's skipped updates on the first rank of the replica, else None.

    Args:
        ledger: the run's ledger folder.
        sequence: the training sequence.
        groups: this rank's coordinates.
        batch_sizes: positions of every step.
    """
    if groups.tensor_rank or groups.pipeline_rank:
        return None
    return SkipWriter(
        log=SkipLog(ledger, groups.data_rank),
        recent=RecentOrigins(),
        sequence=sequence,
        replica=ReplicaSlice(
            batch_sizes=batch_sizes, data_rank=groups.data_rank, data_size=groups.data_size
        ),
    )
