"""How long anything may take before the run says what is wrong and ends.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """The watch over steps and ranks."""

    step_timeout_seconds: float = 240.0
    """Longest time for one step, its data included; must be below
    cluster.collective_timeout_seconds, so that the report comes before the end."""
    phase_timeout_seconds: float = 3600.0
    """Longest time for anything else: starting, saving, drawing samples."""
    heartbeat_seconds: float = 2.0
    """Between two signs of life of each rank."""
    straggler_factor: float = 1.5
    """A rank is reported when its own work takes this many times the median of all ranks."""
    straggler_windows: int = 2
    """Log lines in a row over which it must do so."""

    def __post_init__(self) -> None:
        for name in ("step_timeout_seconds", "phase_timeout_seconds", "heartbeat_seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"watch.{name}={getattr(self, name)}: must be above 0")
        if self.straggler_factor <= 1 or self.straggler_windows < 1:
            raise InputError(
                f"watch.straggler_factor={self.straggler_factor}, watch.straggler_windows="
                f"{self.straggler_windows}: set above 1, and at least 1"
            )
