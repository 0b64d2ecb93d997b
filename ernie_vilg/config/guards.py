"""What a run does about numbers that cannot be right.

Source: ours.
"""

from dataclasses import dataclass
from typing import Annotated

from ernie_vilg.config.schema import MayChange, NaturalFloat, NaturalInt, Range, Settings


@dataclass(frozen=True, kw_only=True)
class GuardsConfig(Settings, section="guards"):
    """Guards over the loss, the gradient and the equality of replicas."""

    spike_deviations: NaturalFloat = 10.0
    """A loss this many standard deviations above its running mean is a spike, and its update is
    left out; a deviation counts as at least 1 % of the mean. 0: only NaN and infinity are."""
    spike_window: Annotated[int, Range(at_least=2, reason="a deviation needs two steps")] = 100
    """Steps that the running mean and deviation look back on; no step is a spike before."""
    max_skips: NaturalInt = 3
    """Updates in a row that may be left out; at the next one the run goes back to its last
    checkpoint and leaves out the batches since."""
    max_rollbacks: NaturalInt = 2
    """Times that one launch goes back before it stops instead."""
    replica_check_every: MayChange[NaturalInt] = 100
    """Steps between two comparisons of what several ranks hold alike; before every checkpoint
    they are compared in any case. 0: only then."""
