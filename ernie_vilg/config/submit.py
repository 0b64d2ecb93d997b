"""Settings of the program that submits a Slurm job."""

from dataclasses import dataclass

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import PositiveFloat


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(PretrainConfig):
    """Settings of launch/submit.py."""

    submit: bool = False
    """Whether to run the command, instead of only printing it."""
    seconds_per_step: PositiveFloat | None = None
    """Seconds per step, for the check of the time limit; null takes the run folder's measurement
    with as many ranks, if there is one."""
