"""Settings of the fire drill: a pretraining run, and what is done to it.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_output

ALL_DRILLS = "all"


@dataclass(frozen=True, kw_only=True)
class DrillConfig(PretrainConfig):
    """The run whose survival is drilled, scaled down, and the faults."""

    drills: str = ALL_DRILLS
    """all, or names of drills with a plus sign between them, such as sigkill_rank+one_ulp."""
    drill_dir: str = "outputs/drill"
    """Folder to write: drill.json, and a folder per drill with its runs and logs. What an earlier
    drill left there is removed."""
    num_ranks: int = 2
    """Ranks of the drilled runs; on a machine with GPUs, at most as many as it has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_local_output(drill_dir=self.drill_dir)
        if self.num_ranks < 2:
            raise InputError(f"num_ranks={self.num_ranks}: most drills need at least 2 ranks")
