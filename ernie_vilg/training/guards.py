"""What a run does about updates that were left out, and about ranks that no longer agree.

A bad update now and then is left out and written down. Several in a row mean that the weights
themselves have gone wrong: the run goes back to its last checkpoint and leaves out the batches
since. If that does not help, it stops. All ranks come to the same verdicts, so that all of them
raise the same errors at the same step.

Source: ours; leaving batches out after going back is PaLM's way (arXiv:2204.02311, section 5.1).
"""

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.config.guards import GuardsConfig
from ernie_vilg.data.batches.token_reader import TokenSequence
from ernie_vilg.data.records.skipped_updates import (
    RecentPlaces,
    Skip,
    SkipLog,
    finite,
    name_samples,
)
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.engine.update_guard import Decision, PendingDecision
from ernie_vilg.parallel.layout.collectives import LEADER
from ernie_vilg.parallel.state.compare_replicas import Difference, ReplicaReport, check_replicas

_WORDS = {
    "nan": "the loss or a gradient is not a number",
    "inf": "the loss or a gradient is infinite",
    "spike": "the loss jumped",
}
_MAX_NAMED = 5  # differences that a message tells of

logger = logging.getLogger(__name__)


class RollBack(Exception):  # noqa: N818, a request to the training loop
    """Too many updates in a row were left out: go back to the last checkpoint."""

    def __init__(self, step: int, reason: str) -> None:
        """Say why.

        Args:
            step: the last update that was left out, counted from 1.
            reason: nan, inf or spike.
        """
        super().__init__(f"step {step}: {_WORDS[reason]}")
        self.step = step
        self.reason = reason


class ReplicaMismatch(RuntimeError):  # noqa: N818, names the state that was found
    """Ranks that should hold the same hold different values."""


@dataclass(frozen=True, kw_only=True)
class SkipWriter:
    """What the one rank of a replica that writes its log needs for it."""

    log: SkipLog
    """The file."""
    recent: RecentPlaces
    """Is told of every step as its batch is handed out."""
    sequence: TokenSequence
    """That the places are of."""
    first_position: int
    """Of the replica's samples within a global batch."""
    num_positions: int
    """Of the replica per step."""
    global_batch_size: int
    """Positions per step."""

    def write(self, step: int, verdict: Decision) -> None:
        """Write down an update that was left out.

        Args:
            step: counted from 1.
            verdict: about it.
        """
        places = self.recent.at(step)
        skip = Skip(
            step=step,
            reason=verdict.reason,
            loss=finite(verdict.loss),
            limit=finite(verdict.limit),
            gradient_norm=finite(verdict.gradient_norm),
            ranks=verdict.ranks,
            first_position=first_position(step, self.global_batch_size) + self.first_position,
            num_positions=self.num_positions,
            samples=() if places is None else name_samples(self.sequence, places),
        )
        self.log.write(skip)


class Guard:
    """Counts the updates that were left out; on every rank, alike."""

    def __init__(
        self, engine: Engine, config: GuardsConfig, writer: SkipWriter | None = None
    ) -> None:
        """Start with no update left out.

        Args:
            engine: which leaves updates out.
            config: how many are too many.
            writer: on the one rank of each replica that writes its log.
        """
        self._engine = engine
        self._config = config
        self._writer = writer
        # A GPU is one step behind the host: who waited for its last verdict would stall it.
        self._delay = 1 if engine.groups.device.type == "cuda" else 0
        self._pending: deque[tuple[int, PendingDecision]] = deque()
        self._last_skip: tuple[int, str] | None = None
        self._num_in_a_row = 0
        self._num_skips = 0
        self._num_rollbacks = 0

    @property
    def num_skips(self) -> int:
        """Updates that the run has left out so far, over all launches."""
        return self._num_skips

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last update that is known of was left out: no time for a checkpoint."""
        return self._num_in_a_row > 0

    def after_step(self, step: int) -> None:
        """Take in the verdict about a step, on GPUs that about the one before.

        Args:
            step: that was just made, counted from 1.

        Raises:
            RollBack: more than `max_skips` updates in a row were left out.
            FloatingPointError: that happened once more than `max_rollbacks` times.
        """
        self._pending.append((step, self._engine.last_decision()))
        while len(self._pending) > self._delay:
            self._take_in(*self._pending.popleft())
        if self._last_skip is not None and self._num_in_a_row > self._config.max_skips:
            self._go_back(*self._last_skip)

    def is_check_due(self, step: int) -> bool:
        """Return whether replicas are to be compared after a step, whatever else is done."""
        every = self._config.replica_check_every
        return bool(every) and step % every == 0

    def check_replicas(self, step: int) -> None:
        """Compare what several ranks hold alike; all ranks must call.

        Args:
            step: steps taken.

        Raises:
            ReplicaMismatch: it is not alike; the message names ranks and parameters.
        """
        report = check_replicas(self._engine)
        if report.differences:
            raise ReplicaMismatch(describe(report, step))

    def state(self) -> dict[str, Any]:
        """Return as JSON values what a resumed run must know to decide as this one would."""
        while self._pending:
            self._take_in(*self._pending.popleft())
        return {
            "skips_in_a_row": self._num_in_a_row,
            "skips": self._num_skips,
            "losses": self._engine.guard_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, or from nothing where it is empty.

        Updates left out since stay counted, and so do the times that this launch went back.
        """
        self._pending.clear()
        self._last_skip = None
        self._num_in_a_row = int(state.get("skips_in_a_row", 0))
        self._num_skips = max(self._num_skips, int(state.get("skips", 0)))
        self._engine.load_guard_state(state.get("losses", {}))

    def _take_in(self, step: int, pending: PendingDecision) -> None:
        verdict = pending.read()
        if verdict.is_made:
            self._last_skip, self._num_in_a_row = None, 0
            return
        self._last_skip = step, verdict.reason
        self._num_skips += 1
        self._num_in_a_row += 1
        if self._engine.groups.rank == LEADER:
            logger.warning("%s", skip_line(step, verdict))
        if self._writer is not None:
            self._writer.write(step, verdict)

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
            "lower optimizer.learning_rate or gradient_clipping; or, where a rise of the loss is "
            "no fault, as at a change of the data, with a larger guards.spike_deviations (0: none "
            "is)"
        )


def skip_line(step: int, verdict: Decision) -> str:
    """Write one line for people about an update that was left out."""
    why = _WORDS[verdict.reason]
    if verdict.reason == "spike":
        why += f" to {verdict.loss:.4f}, more than {verdict.limit:.4f} is taken for a fault"
    elif verdict.ranks:
        shown = ", ".join(str(rank) for rank in verdict.ranks[:_MAX_NAMED])
        more = ", ..." if len(verdict.ranks) > _MAX_NAMED else ""
        why += f" (on rank {shown}{more})"
    return f"step {step}: the weights are left as they were, {why}"


def describe(report: ReplicaReport, step: int) -> str:
    """Write for people which ranks differ in what, and what to do."""
    settled = [each for each in report.differences if each.is_settled]
    shown = (settled or list(report.differences))[:_MAX_NAMED]
    lines = [f"step {step}: ranks that must hold the same values do not"]
    lines += [f"  {_sentence(each, report)}" for each in shown]
    if len(report.differences) > len(shown):
        lines.append(f"  and {len(report.differences) - len(shown)} more")
    lines.append(
        "a fault of such a rank's memory or network is the likeliest cause: if it comes again, "
        "start without its machine; at the last checkpoint all ranks agreed"
    )
    return "\n".join(lines)


def _sentence(difference: Difference, report: ReplicaReport) -> str:
    what = f"{difference.kind} {difference.name}"
    suspects = " and ".join(report.ranks[rank] for rank in difference.suspects)
    if not difference.is_settled:
        return f"{what}: they differ, and no majority says which is wrong: {suspects}"
    others = len(difference.holders) - len(difference.suspects)
    verb = "differs" if len(difference.suspects) == 1 else "differ"
    return f"{what}: {suspects} {verb} from {others} others"


def skip_writer(
    ledger: Path, sequence: TokenSequence, engine: Engine, global_batch_size: int
) -> SkipWriter | None:
    """Return what writes a replica's log on the one rank that does, None on the others.

    Args:
        ledger: the run's ledger folder.
        sequence: that batches are cut from.
        engine: gives this rank's place.
        global_batch_size: positions per step.
    """
    groups = engine.groups
    if groups.tensor_rank or groups.pipeline_rank:
        return None
    share = global_batch_size // groups.data_size
    return SkipWriter(
        log=SkipLog(ledger, groups.data_rank),
        recent=RecentPlaces(),
        sequence=sequence,
        first_position=groups.data_rank * share,
        num_positions=share,
        global_batch_size=global_batch_size,
    )
