"""The phase of a rank, for the watchdog, the stop request and the fire drill.

The main thread sets the phase; other threads read it. Points are finer marks inside a phase, at
which the fire drill injects faults; a run does nothing at them.
"""

import time
from dataclasses import dataclass
from enum import StrEnum

from ernie_vilg.parallel.engine.engine import Engine


class Phase(StrEnum):
    """Parts of a run, as its reports name them."""

    START = "starting"
    DATA = "reading data"
    STEP = "training"
    CHECK = "comparing replicas"
    SAVE = "saving"
    DRAW = "drawing samples"
    HEALTH = "measuring health"
    STATISTICS = "adding up statistics"
    RECONSTRUCT = "reconstructing pictures"
    END = "ending"


@dataclass(frozen=True, kw_only=True)
class CurrentPhase:
    """The phase of a rank at some moment."""

    phase: Phase
    """Part of the run."""
    step: int
    """Step being made, from 1; between two steps, the last one made."""
    since: float
    """`time.monotonic()` at which the phase began."""


class Phases:
    """The phase of this rank; its main thread sets it."""

    def __init__(self) -> None:
        self._now = CurrentPhase(phase=Phase.START, step=0, since=time.monotonic())

    @property
    def now(self) -> CurrentPhase:
        """The current phase; safe to read from any thread."""
        return self._now

    def enter(self, phase: Phase, step: int) -> None:
        """Begin a phase.

        Args:
            phase: the phase that begins.
            step: the step being made, from 1; between two steps, the last one made.
        """
        self._now = CurrentPhase(phase=phase, step=step, since=time.monotonic())

    def attach(self, engine: Engine) -> None:
        """Take the engine once it is built; the fire drill corrupts its tensors."""

    def point(self, name: str) -> None:
        """Pass a named point within the phase; the fire drill injects a fault here."""
