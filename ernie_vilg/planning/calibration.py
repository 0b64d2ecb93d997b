"""Errors of past predictions, and the factors that correct new ones.

Two factors are fitted: one on the rates of computing and one on bytes, each the median over the
past runs. Rates of wires stay as they are.
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
"""Bounds of the search for a factor on rates."""


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """One run: its settings, its predictions and its measurements."""

    workload: Workload
    """Workload of its model."""
    spread: Spread
    """Layout over the GPUs."""
    gpu: GpuConfig
    """Kind of GPU that it ran on."""
    measured_seconds: float
    """Measured seconds per step."""
    predicted_bytes: float
    """Predicted peak bytes of the worst rank, uncorrected, without fragmentation."""
    measured_bytes: float
    """Measured peak bytes of the worst rank."""

    def seconds(self, rates: Efficiencies) -> float:
        """Return the predicted seconds per step."""
        return step_time(self.workload, self.spread, self.gpu, rates).total


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Factors on predictions; 1 changes nothing."""

    rates: float = 1.0
    """Factor on the rates of matrix products and of the GPU's memory."""
    memory: float = 1.0
    """Factor on bytes: measured over predicted."""
    base: Efficiencies = field(default_factory=Efficiencies)
    """Efficiencies that the factor on rates multiplies."""

    @property
    def efficiencies(self) -> Efficiencies:
        """Corrected efficiencies."""
        return replace(
            self.base, matrix=self.base.matrix * self.rates, memory=self.base.memory * self.rates
        )

    def memory_of(self, estimate: MemoryEstimate) -> MemoryEstimate:
        """Return the estimate with every part on the device multiplied by the factor."""
        names = [each.name for each in fields(estimate) if each.name != "host"]
        return replace(
            estimate, **{name: round(getattr(estimate, name) * self.memory) for name in names}
        )


def learn(runs: Sequence[PastRun]) -> Correction:
    """Return the factors that fit past runs; without runs they change nothing."""
    if not runs:
        return Correction()
    return Correction(
        rates=statistics.median(_factor(run) for run in runs),
        memory=statistics.median(run.measured_bytes / run.predicted_bytes for run in runs),
    )


def errors(runs: Sequence[PastRun], correction: Correction) -> tuple[float, float]:
    """Return the mean absolute error of seconds and of bytes, as fractions of the measured ones."""
    if not runs:
        return math.nan, math.nan
    rates = correction.efficiencies
    seconds = [abs(run.seconds(rates) / run.measured_seconds - 1) for run in runs]
    memory = [abs(run.predicted_bytes * correction.memory / run.measured_bytes - 1) for run in runs]
    return statistics.mean(seconds), statistics.mean(memory)


def _factor(run: PastRun) -> float:
    """Return the factor on rates that makes a run's prediction exact, or the nearest bound."""
    low, high = _SLOWEST, _FASTEST
    for _ in range(60):
        middle = math.sqrt(low * high)
        is_slow = run.seconds(Correction(rates=middle).efficiencies) > run.measured_seconds
        low, high = (middle, high) if is_slow else (low, middle)
    return math.sqrt(low * high)
