"""What past runs teach: how far predictions were off, and the factors that put them right.

Two factors and no more: seconds and bytes, each the median of measured over predicted. A run
with other hardware than the plan's teaches nothing and is named.

Source: ours.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from ernie_vilg.planning.memory import MemoryEstimate
from ernie_vilg.planning.step_time import Efficiencies


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What was predicted for one run, and what it measured."""

    run_dir: str
    """Its folder."""
    predicted_seconds: float
    """Per step, uncorrected."""
    measured_seconds: float
    """Per step."""
    predicted_bytes: float
    """Of the rank that needs most, uncorrected, fragmentation apart."""
    measured_bytes: float
    """Of the rank that needs most."""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Factors on predictions; 1 changes nothing."""

    seconds: float = 1.0
    """Measured over predicted."""
    memory: float = 1.0
    """Measured over predicted."""
    base: Efficiencies = field(default_factory=Efficiencies)
    """That the factor of the seconds is laid on."""

    @property
    def efficiencies(self) -> Efficiencies:
        """Rates of computing that make predictions as slow as what was measured."""
        return replace(
            self.base,
            matrix=self.base.matrix / self.seconds,
            memory=self.base.memory / self.seconds,
        )

    def memory_of(self, estimate: MemoryEstimate) -> MemoryEstimate:
        """Return the estimate with every part on the device times the factor."""
        names = [each.name for each in fields(estimate) if each.name != "host"]
        return replace(
            estimate, **{name: round(getattr(estimate, name) * self.memory) for name in names}
        )


def learn(pairs: Sequence[Pair]) -> Correction:
    """Return the factors that past runs call for; those of no run change nothing."""
    if not pairs:
        return Correction()
    return Correction(
        seconds=statistics.median(pair.measured_seconds / pair.predicted_seconds for pair in pairs),
        memory=statistics.median(pair.measured_bytes / pair.predicted_bytes for pair in pairs),
    )


def errors(pairs: Sequence[Pair], correction: Correction) -> tuple[float, float]:
    """Return the mean absolute error of seconds and of bytes, as shares of what was measured.

    The seconds are those of the factor laid on whole steps; `efficiencies` leaves what does not
    compute, such as wires, as it is.
    """
    if not pairs:
        return math.nan, math.nan
    seconds = [
        abs(pair.predicted_seconds * correction.seconds / pair.measured_seconds - 1)
        for pair in pairs
    ]
    memory = [
        abs(pair.predicted_bytes * correction.memory / pair.measured_bytes - 1) for pair in pairs
    ]
    return statistics.mean(seconds), statistics.mean(memory)
