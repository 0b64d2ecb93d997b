"""Settings of the watchdog: timeouts, heartbeats and stragglers."""

from dataclasses import dataclass
from typing import Annotated

from ernie_vilg.config.schema import PositiveFloat, PositiveInt, Range, Settings


@dataclass(frozen=True, kw_only=True)
class WatchConfig(Settings, section="watch"):
    """Watchdog over steps and ranks."""

    step_timeout_seconds: PositiveFloat = 240.0
    """Timeout of a step, data included; below cluster.collective_timeout_seconds, so that the
    report is written before the run ends."""
    phase_timeout_seconds: PositiveFloat = 3600.0
    """Timeout of every other phase, such as starting, saving and drawing samples."""
    heartbeat_seconds: PositiveFloat = 2.0
    """Interval of each rank's heartbeats."""
    straggler_factor: Annotated[float, Range(above=1)] = 1.5
    """Multiple of the median of all ranks' own work at which a rank is a straggler."""
    straggler_windows: PositiveInt = 2
    """Log lines in a row before a straggler is reported."""
