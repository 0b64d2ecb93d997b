"""Settings of the program that prepares a run for another layout.

Source: ours.
"""

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
    """Processes, each of which needs memory for a file of one rank; 0 is as many as the machine's
    cores and memory allow."""
