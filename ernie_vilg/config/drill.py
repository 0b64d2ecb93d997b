"""Settings of the fire drill: a pretraining run, and what is done to it.

Source: ours.
"""

from dataclasses import dataclass
from typing import Annotated

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import LocalOutput, Range

ALL_DRILLS = "all"


@dataclass(frozen=True, kw_only=True)
class DrillConfig(PretrainConfig):
    """The run whose survival is drilled, scaled down, and the faults."""

    drills: str = ALL_DRILLS
    """all, or names of drills with a plus sign between them, such as sigkill_rank+one_ulp."""
    drill_dir: LocalOutput = "outputs/drill"
    """Folder to write: drill.json, and a folder per drill with its runs and logs. What an earlier
    drill left there is removed."""
    num_ranks: Annotated[int, Range(at_least=2, reason="most drills need two ranks")] = 2
    """Ranks of the drilled runs; on a machine with GPUs, at most as many as it has."""
