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
    VALIDATE = "validating"
    DRAW = "drawing samples"
    HEALTH = "measuring health"
    STATISTICS = "adding up statistics"
    RECONSTRUCT = "reconstructing pictures"
    END = "ending"


_NO_PAUSES = (Phase.START, Phase.DATA, Phase.STEP, Phase.END)


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
        self._counted_until = self._now.since
        self._seconds: dict[Phase, float] = {}

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
        self._count()
        self._now = CurrentPhase(phase=phase, step=step, since=time.monotonic())

    def read(self) -> dict[str, float]:
        """Return the seconds of this rank since the last call; for the main thread.

        Returns:
            `line_seconds`, of all that belongs to training, without start and end; and
            `<phase>_seconds` of each phase between two steps that was entered.
        """
        self._count()
        seconds, self._seconds = self._seconds, {}
        outside = (Phase.START, Phase.END)
        training = sum(seconds[phase] for phase in seconds if phase not in outside)
        pauses = {pause_name(phase): seconds[phase] for phase in seconds if is_pause(phase)}
        return {"line_seconds": training, **pauses}

    def attach(self, engine: Engine) -> None:
        """Take the engine once it is built; the fire drill corrupts its tensors."""

    def point(self, name: str) -> None:
        """Pass a named point within the phase; the fire drill injects a fault here."""

    def _count(self) -> None:
        now = time.monotonic()
        seconds = self._seconds.get(self._now.phase, 0.0) + now - self._counted_until
        self._seconds[self._now.phase], self._counted_until = seconds, now


def is_pause(phase: Phase) -> bool:
    """Return whether a phase lies between two steps."""
    return phase not in _NO_PAUSES


def pause_name(phase: Phase) -> str:
    """Return the name of a phase's seconds in the metrics."""
    return f"{phase.name.lower()}_seconds"
