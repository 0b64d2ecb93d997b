"""Settings of the guards against wrong numbers in training."""

from dataclasses import dataclass
from typing import Annotated

from ernie_vilg.config.schema import MayChange, NaturalFloat, NaturalInt, Range, Settings


@dataclass(frozen=True, kw_only=True)
class GuardsConfig(Settings, section="guards"):
    """Guards of the loss, the gradient and the equality of replicas."""

    spike_deviations: NaturalFloat = 10.0
    """Standard deviations above its running mean at which a loss is a spike, whose update is
    skipped; a deviation counts as at least 1 % of the mean. 0 skips only NaN and infinity."""
    spike_window: Annotated[int, Range(at_least=2, reason="a deviation needs two steps")] = 100
    """Number of steps in the running mean and deviation; before them no step is a spike."""
    max_skips: NaturalInt = 3
    """Most updates skipped in a row; at the next one the run rolls back to its last checkpoint and
    skips the batches since."""
    max_rollbacks: NaturalInt = 2
    """Most rollbacks of one launch before it stops."""
    replica_check_every: MayChange[NaturalInt] = 100
    """Interval of comparing replicated tensors, steps; they are also compared before every
    checkpoint. 0 compares only then."""
