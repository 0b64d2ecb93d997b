"""Settings of the soak: a pretraining run under random faults for many minutes."""

from dataclasses import dataclass

from ernie_vilg.config.drill import DrillConfig
from ernie_vilg.config.schema import LocalOutput, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class SoakConfig(DrillConfig):
    """Settings of launch/soak.py."""

    drill_dir: LocalOutput = "outputs/soak"
    """Folder for soak.json and the runs with their logs. Files of an earlier soak are removed."""
    minutes: PositiveFloat = 20.0
    """Minutes of fault injection."""
    soak_seed: int = 0
    """Seed of the faults and their times."""
