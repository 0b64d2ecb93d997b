"""Settings of the fire drill: a pretraining run and its faults."""

from dataclasses import dataclass
from typing import Annotated

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import LocalOutput, Range

ALL_DRILLS = "all"


@dataclass(frozen=True, kw_only=True)
class DrillConfig(PretrainConfig):
    """Settings of launch/drill.py; the run is scaled down."""

    drills: str = ALL_DRILLS
    """Drills: all, or names joined by plus signs, such as sigkill_rank+one_ulp."""
    drill_dir: LocalOutput = "outputs/drill"
    """Folder for drill.json, and for the runs and logs of each drill. Files of an earlier drill are
    removed."""
    num_ranks: Annotated[int, Range(at_least=2, reason="most drills need two ranks")] = 2
    """Number of ranks; on a machine with GPUs, at most as many as it has."""
