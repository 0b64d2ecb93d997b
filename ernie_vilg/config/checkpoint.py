"""When a run's state is saved, how, and which of it is kept.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of a pretraining run."""

    every: int
    """Steps between two checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints of multiples of this step are kept for good; 0 keeps none so."""
    asynchronous: bool = True
    """Whether training goes on while a checkpoint is written, out of a copy in host memory that
    is as large as the rank's files."""
    max_failed_saves: int = 2
    """Saves in a row that may fail (disk full, say) before the run stops; the last checkpoint
    stays valid in any case."""

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"checkpoint.{name}={getattr(self, name)}: must be at least 1")
        for name in ("keep_every", "max_failed_saves"):
            if getattr(self, name) < 0:
                raise InputError(f"checkpoint.{name}={getattr(self, name)}: must not be negative")
