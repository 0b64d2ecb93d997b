"""Settings of the program that writes and submits a Slurm job.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(PretrainConfig):
    """A pretraining run, and whether it is submitted."""

    submit: bool = False
    """Whether the command is run, rather than printed alone."""
    seconds_per_step: float | None = None
    """Of this run, for the check of the time limit; null: as measured with as many ranks, where the
    run folder has a measurement."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds_per_step is not None and self.seconds_per_step <= 0:
            raise InputError(f"seconds_per_step={self.seconds_per_step}: must be above 0, or null")
