"""A stage of the acceptance run, and how it ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.support.measurer import Result


class Status(StrEnum):
    """End of a stage, in a word."""

    PASSED = "passed"
    FAILED = "FAILED"
    CUT = "cut"
    """Stopped by its time limit or with the whole run; the next call repeats it."""
    SKIPPED = "skipped"
    """Not started: no time left, or a stage that it needs has not passed."""
    NOT_HERE = "not here"
    """Not run: the machine lacks something, such as a GPU."""


class StageError(Exception):
    """A stage failed; the message says why, and `rows` were measured before."""

    def __init__(self, message: str, rows: Sequence[Result] = ()) -> None:
        """Take the message and the rows."""
        super().__init__(message)
        self.rows = list(rows)


class CutError(StageError):
    """A stage reached its time limit."""


class NotHereError(StageError):
    """The machine lacks what a stage needs; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the acceptance run that passes or fails by itself."""

    name: str
    """Name in the table and in the state file."""
    half: int
    """Half that it belongs to, 1 or 2."""
    value: int
    """Importance: where time is short, higher values run first."""
    seconds: float
    """Expected time on an H100; with less left, the stage is skipped."""
    run: Callable[[Context, float], list[Result]]
    """Function of the context and the seconds left that returns the stage's figures. Each figure
    has `metric`, `value` and `unit`."""
    needs: tuple[str, ...] = ()
    """Stages that must have passed."""
    leaves: tuple[str, ...] = ()
    """Files and folders of the working folder that later stages read."""
    is_alone: bool = True
    """Whether nothing else may run beside it, as where time is measured. Others run two at a
    time."""
    is_optional: bool = False
    """Whether the run is green although no time was left for it."""
    needs_gpu: bool = False
    """Whether a machine without a GPU has no counterpart of it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The end of a stage, as the state file keeps it."""

    status: Status
    seconds: float = 0.0
    """Wall time of the stage."""
    rows: list[Result] = field(default_factory=list)
    """Figures of the stage."""
    reason: str = ""
    """Reason of every status but `passed`."""
    code: str = ""
    """Fingerprint of the code that ran."""


def figure(metric: str, value: float, unit: str, **rest: object) -> Result:
    """Return a figure of a stage.

    Args:
        metric: its name, unique over all stages.
        value: its value.
        unit: its unit; empty for a share.
        rest: further values for the state file.
    """
    return {"metric": metric, "value": value, "unit": unit, **rest}
