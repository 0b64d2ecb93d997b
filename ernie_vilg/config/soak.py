"""Settings of the soak: a pretraining run under random faults for many minutes.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.drill import DrillConfig
from ernie_vilg.config.schema import LocalOutput, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class SoakConfig(DrillConfig):
    """The run, for how long it is struck, and what chooses the faults."""

    drill_dir: LocalOutput = "outputs/soak"
    """Folder to write: soak.json, and the runs with their logs. What an earlier soak left there is
    removed."""
    minutes: PositiveFloat = 20.0
    """For how long faults strike."""
    soak_seed: int = 0
    """Names the faults and their times."""
