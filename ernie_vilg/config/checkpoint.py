"""When a run's state is saved, how, and which of it is kept.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.schema import NaturalInt, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Settings, section="checkpoint"):
    """Checkpoints of a pretraining run."""

    every: PositiveInt
    """Steps between two checkpoints; the last step is always saved."""
    keep: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_every: NaturalInt = 0
    """Checkpoints of multiples of this step are kept for good; 0 keeps none so."""
    asynchronous: bool = True
    """Whether training goes on while a checkpoint is written, out of a copy in host memory that
    is as large as the rank's files."""
    max_failed_saves: NaturalInt = 2
    """Saves in a row that may fail (disk full, say) before the run stops; the last checkpoint
    stays valid in any case."""
