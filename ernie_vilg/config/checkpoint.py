"""Settings of checkpoints: interval, retention, and writing in the background."""

from dataclasses import dataclass

from ernie_vilg.config.schema import NaturalInt, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Settings, section="checkpoint"):
    """Checkpoints of a pretraining run."""

    every: PositiveInt
    """Interval of checkpoints, steps; the last step is always saved."""
    keep: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_every: NaturalInt = 0
    """Interval of checkpoints to keep forever, steps; 0 keeps none."""
    asynchronous: bool = True
    """Whether training continues while a checkpoint is written, from a copy in host memory as large
    as the rank's files."""
    max_failed_saves: NaturalInt = 2
    """Most failed saves in a row, for example on a full disk, before the run stops; the last
    checkpoint stays valid."""

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether a step is saved: a multiple of `every`, or the last of `steps`."""
        return step % self.every == 0 or step == steps
