"""Runs stages by their value within a time budget; what has passed is not repeated."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.stages import (
    CutError,
    NotHereError,
    Record,
    Stage,
    StageError,
    Status,
)
from benchmarks.gpu_acceptance_parts.state import State

LANES = 2
"""Stages side by side: more compile so slowly on one machine that each takes over a minute."""
SECONDS_OF_A_REHEARSAL = 10.0
"""Expected time of every stage at toy size."""
LIMIT_FACTOR, LIMIT_SECONDS = 3.0, 30.0
"""Time limit of a stage on a GPU: a multiple of its expected time, and a constant."""
_REASON_CHARACTERS = 300


def to_do(stages: Sequence[Stage], state: State, context: Context, half: int | None) -> list[Stage]:
    """Return the stages to run, the most valuable first.

    They are those of the half that have not passed, and those of an earlier half that were cut or
    skipped. A stage that has passed runs again if another one to run needs what it left, and that
    is gone.

    Args:
        stages: all stages.
        state: how they ended so far.
        context: the folders.
        half: the half, 1 or 2; None runs both.
    """
    unfinished = {Status.CUT, Status.SKIPPED}
    chosen = {
        stage.name
        for stage in stages
        if half in (None, stage.half)
        or (stage.half < half and state.status(stage.name) in {None, *unfinished})
    }
    chosen = {name for name in chosen if state.status(name) is not Status.PASSED}
    by_name = {stage.name: stage for stage in stages}
    new = chosen
    while new:
        needed = {name for stage in new for name in by_name[stage].needs} - chosen
        new = {name for name in needed if not _has_all(by_name[name], context)}
        chosen |= new
    return sorted((stage for stage in stages if stage.name in chosen), key=lambda it: -it.value)


def _has_all(stage: Stage, context: Context) -> bool:
    return all((context.work / path).exists() for path in stage.leaves)


@dataclass(kw_only=True)
class Runner:
    """Runs stages one after another, or two at a time where they allow it."""

    context: Context
    """Folders and processes of the stages."""
    state: State
    """Ends of the stages; written after each."""
    seconds: float
    """Time budget of one call of `run`."""
    report: Callable[[Stage, Record], None]
    """Function to call with every stage that has ended."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._ends = 0.0
        self._ended: dict[str, threading.Event] = {}

    def run(self, stages: Iterable[Stage]) -> None:
        """Run stages in the given order, most valuable first."""
        self._ends = time.monotonic() + self.seconds
        for is_alone, group in groupby(stages, key=lambda stage: stage.is_alone):
            if is_alone:
                for stage in group:
                    self._attempt(stage)
                    self.context.close_lanes()
                continue
            shared = list(group)
            self._ended = {stage.name: threading.Event() for stage in shared}
            with ThreadPoolExecutor(LANES) as pool:
                list(pool.map(self._attempt_in_turn, shared))
            self.context.close_lanes()

    def _attempt_in_turn(self, stage: Stage) -> None:
        """Attempt a stage after those beside it that it needs, which have a higher value."""
        for name in stage.needs:
            if name in self._ended:
                self._ended[name].wait()
        try:
            self._attempt(stage)
        finally:
            self._ended[stage.name].set()

    def _attempt(self, stage: Stage) -> None:
        left = self._ends - time.monotonic()
        started = time.monotonic()
        record = self._obstacle(stage, left)
        if record is None:
            # A run that is killed leaves this record behind.
            self._keep(stage, Record(status=Status.CUT, reason="the run ended before it"))
            record = self._run(stage, self._limit(stage, left))
        record = Record(
            **{**vars(record), "seconds": time.monotonic() - started, "code": self.state.code}
        )
        self._keep(stage, record)
        with self._lock:
            self.report(stage, record)

    def _obstacle(self, stage: Stage, left: float) -> Record | None:
        """Return the end of a stage that cannot start."""
        if stage.needs_gpu and not self.context.has_gpu:
            return Record(status=Status.NOT_HERE, reason="needs a GPU")
        missing = [name for name in stage.needs if self.state.status(name) is not Status.PASSED]
        if missing:
            return Record(status=Status.SKIPPED, reason=f"needs: {', '.join(missing)}")
        expected = stage.seconds if self.context.has_gpu else SECONDS_OF_A_REHEARSAL
        if left < expected:
            reason = f"takes about {expected:.0f} s, {max(0.0, left):.0f} s are left"
            return Record(status=Status.SKIPPED, reason=reason)
        return None

    def _limit(self, stage: Stage, left: float) -> float:
        """Return the time limit of a stage, so that one that hangs leaves time to the others."""
        if not self.context.has_gpu:
            return left
        return min(left, LIMIT_FACTOR * stage.seconds + LIMIT_SECONDS)

    def _run(self, stage: Stage, left: float) -> Record:
        try:
            return Record(status=Status.PASSED, rows=stage.run(self.context, left))
        except (TimeoutError, CutError) as error:
            return _ended(Status.CUT, error)
        except NotHereError as error:
            return _ended(Status.NOT_HERE, error)
        except Exception as error:  # a stage that fails ends itself, not the run
            return _ended(Status.FAILED, error)

    def _keep(self, stage: Stage, record: Record) -> None:
        with self._lock:
            self.state.put(stage.name, record)


def _ended(status: Status, error: Exception) -> Record:
    """Return the record of a stage that raised; the reason is the line that says most."""
    rows = error.rows if isinstance(error, StageError) else []
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    named = [line for line in lines if "Error" in line or "Exception" in line]
    return Record(status=status, rows=rows, reason=(named or lines)[-1][:_REASON_CHARACTERS])
