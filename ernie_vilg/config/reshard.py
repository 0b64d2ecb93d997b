"""Settings of the program that prepares a run for another layout."""

from dataclasses import dataclass

from ernie_vilg.config.schema import LocalOutput, NumWorkers, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class ReshardConfig(Settings):
    """Settings of launch/reshard.py."""

    run: LocalOutput
    """Run folder of launch/pretrain.py."""
    step: PositiveInt | None = None
    """Step of the checkpoint to consolidate; null is the newest that verifies."""
    num_workers: NumWorkers = 0
    """Number of processes, each of which needs memory for a file of one rank; 0 takes as many as
    cores and memory allow."""
