"""What a rank is doing, for whoever asks: the watchdog, a stop request, the fire drill.

The main thread says where it is; other threads read it. Points are finer marks inside a phase,
at which the fire drill kills, stops or corrupts; a run does nothing at them.

Source: ours.
"""

import time
from dataclasses import dataclass
from enum import StrEnum

from ernie_vilg.parallel.engine.engine import Engine


class Phase(StrEnum):
    """Parts of a run, in the words of its reports."""

    START = "starting"
    DATA = "reading data"
    STEP = "training"
    CHECK = "comparing replicas"
    SAVE = "saving"
    DRAW = "drawing samples"
    HEALTH = "measuring health"
    END = "ending"


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where a rank was at some moment."""

    phase: Phase
    """What it was doing."""
    step: int
    """Step being made, from 1; between two steps, the last one made."""
    since: float
    """`time.monotonic()` at which it began to."""


class Phases:
    """Where this rank is."""

    def __init__(self) -> None:
        self._now = Whereabouts(phase=Phase.START, step=0, since=time.monotonic())

    @property
    def now(self) -> Whereabouts:
        """Where the rank is; safe to read from any thread."""
        return self._now

    def enter(self, phase: Phase, step: int) -> None:
        """Say what comes next.

        Args:
            phase: what begins.
            step: the step being made, from 1; between two steps, the last one made.
        """
        self._now = Whereabouts(phase=phase, step=step, since=time.monotonic())

    def attach(self, engine: Engine) -> None:
        """Hear of the engine once it is built; the fire drill spoils its tensors."""

    def point(self, name: str) -> None:
        """Pass a named point within the phase; the fire drill strikes here."""
