"""What past runs teach: how far predictions were off, and the factors that put them right.

Two factors and no more: one on the rates of computing, one on bytes, each the median of what the
runs call for. Wires keep their rates.

Source: ours.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.planning.memory import MemoryEstimate
from ernie_vilg.planning.step_time import Efficiencies, step_time
from ernie_vilg.planning.workload import Spread, Workload

_SLOWEST, _FASTEST = 0.02, 50.0
"""Factors on rates between which the one of a run is looked for."""


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """One run: what is known before it, and what it measured."""

    workload: Workload
    """Its model."""
    spread: Spread
    """Its layout."""
    gpu: GpuConfig
    """What it ran on."""
    measured_seconds: float
    """Per step."""
    predicted_bytes: float
    """Of the rank that needs most, uncorrected, fragmentation apart."""
    measured_bytes: float
    """Of the rank that needs most."""

    def seconds(self, rates: Efficiencies) -> float:
        """Return the predicted seconds per step."""
        return step_time(self.workload, self.spread, self.gpu, rates).total


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Factors on predictions; 1 changes nothing."""

    rates: float = 1.0
    """On the rates of matrix products and of the GPU's memory."""
    memory: float = 1.0
    """Measured over predicted bytes."""
    base: Efficiencies = field(default_factory=Efficiencies)
    """That the factor of the rates is laid on."""

    @property
    def efficiencies(self) -> Efficiencies:
        """Rates of computing, put right."""
        return replace(
            self.base, matrix=self.base.matrix * self.rates, memory=self.base.memory * self.rates
        )

    def memory_of(self, estimate: MemoryEstimate) -> MemoryEstimate:
        """Return the estimate with every part on the device times the factor."""
        names = [each.name for each in fields(estimate) if each.name != "host"]
        return replace(
            estimate, **{name: round(getattr(estimate, name) * self.memory) for name in names}
        )


def learn(runs: Sequence[PastRun]) -> Correction:
    """Return the factors that past runs call for; those of no run change nothing."""
    if not runs:
        return Correction()
    return Correction(
        rates=statistics.median(_factor(run) for run in runs),
        memory=statistics.median(run.measured_bytes / run.predicted_bytes for run in runs),
    )


def errors(runs: Sequence[PastRun], correction: Correction) -> tuple[float, float]:
    """Return the mean absolute error of seconds and of bytes, as shares of what was measured."""
    if not runs:
        return math.nan, math.nan
    rates = correction.efficiencies
    seconds = [abs(run.seconds(rates) / run.measured_seconds - 1) for run in runs]
    memory = [abs(run.predicted_bytes * correction.memory / run.measured_bytes - 1) for run in runs]
    return statistics.mean(seconds), statistics.mean(memory)


def _factor(run: PastRun) -> float:
    """Return the factor on rates with which a run's seconds come out, or the nearest to it."""
    low, high = _SLOWEST, _FASTEST
    for _ in range(60):
        middle = math.sqrt(low * high)
        is_slow = run.seconds(Correction(rates=middle).efficiencies) > run.measured_seconds
        low, high = (middle, high) if is_slow else (low, middle)
    return math.sqrt(low * high)
