"""Settings of the program that writes and submits a Slurm job.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import PositiveFloat


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(PretrainConfig):
    """A pretraining run, and whether it is submitted."""

    submit: bool = False
    """Whether the command is run, rather than printed alone."""
    seconds_per_step: PositiveFloat | None = None
    """Of this run, for the check of the time limit; null: as measured with as many ranks, where the
    run folder has a measurement."""
