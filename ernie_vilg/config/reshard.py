"""Settings of the program that prepares a run for another layout.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_output


@dataclass(frozen=True, kw_only=True)
class ReshardConfig:
    """Settings of launch/reshard.py."""

    run: str
    """Run folder of launch/pretrain.py."""
    step: int | None = None
    """The checkpoint that is put together; null is the newest that verifies."""
    num_workers: int = 0
    """Processes, each of which needs memory for a file of one rank; 0 is as many as the machine's
    cores and memory allow."""

    def __post_init__(self) -> None:
        check_local_output(run=self.run)
        if self.step is not None and self.step < 1:
            raise InputError(
                f"step={self.step}: set at least 1, fresh weights are the same under every layout"
            )
        if self.num_workers < 0:
            raise InputError(f"num_workers={self.num_workers}: set 0 or more")
