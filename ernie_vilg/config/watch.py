"""How long anything may take before the run says what is wrong and ends.

Source: ours.
"""

from dataclasses import dataclass
from typing import Annotated

from ernie_vilg.config.schema import PositiveFloat, PositiveInt, Range, Settings


@dataclass(frozen=True, kw_only=True)
class WatchConfig(Settings, section="watch"):
    """The watch over steps and ranks."""

    step_timeout_seconds: PositiveFloat = 240.0
    """Longest time for one step, its data included; must be below
    cluster.collective_timeout_seconds, so that the report comes before the end."""
    phase_timeout_seconds: PositiveFloat = 3600.0
    """Longest time for anything else: starting, saving, drawing samples."""
    heartbeat_seconds: PositiveFloat = 2.0
    """Between two signs of life of each rank."""
    straggler_factor: Annotated[float, Range(above=1)] = 1.5
    """A rank is reported when its own work takes this many times the median of all ranks."""
    straggler_windows: PositiveInt = 2
    """Log lines in a row over which it must do so."""
