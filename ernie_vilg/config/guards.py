"""What a run does about numbers that cannot be right.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class GuardsConfig:
    """Guards over the loss, the gradient and the equality of replicas."""

    spike_deviations: float = 10.0
    """A loss this many standard deviations above its running mean is a spike, and its update is
    left out; a deviation counts as at least 1 % of the mean. 0: only NaN and infinity are."""
    spike_window: int = 100
    """Steps that the running mean and deviation look back on; no step is a spike before."""
    max_skips: int = 3
    """Updates in a row that may be left out; at the next one the run goes back to its last
    checkpoint and leaves out the batches since."""
    max_rollbacks: int = 2
    """Times that one launch goes back before it stops instead."""
    replica_check_every: int = 100
    """Steps between two comparisons of what several ranks hold alike; before every checkpoint
    they are compared in any case. 0: only then."""

    def __post_init__(self) -> None:
        for name in ("spike_deviations", "max_skips", "max_rollbacks", "replica_check_every"):
            if not getattr(self, name) >= 0:  # NaN is not, either
                raise InputError(f"guards.{name}={getattr(self, name)}: must be 0 or more")
        if self.spike_window < 2:
            raise InputError(
                f"guards.spike_window={self.spike_window}: must be at least 2, a deviation needs "
                "two steps"
            )
