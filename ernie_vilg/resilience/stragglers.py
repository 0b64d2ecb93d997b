"""Stragglers: ranks that work while the others wait for them.

A step takes as long as its slowest rank, so its time is the same on every rank. The time that a
rank spends outside of collectives is not. Stages have different layers: a rank is compared with the
other ranks of its stage, or with all ranks if it has the stage to itself.

Source: MegaScale compares ranks in the same way (arXiv:2402.15627, section 5).
"""

import logging
from collections.abc import Sequence
from statistics import median_low

from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.parallel.layout.collectives import LEADER, gather_everywhere
from ernie_vilg.parallel.layout.coordinates import coordinates_of
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.resilience.members import Member

logger = logging.getLogger(__name__)


class Stragglers:
    """Looks for slow ranks at every log line."""

    def __init__(self, config: WatchConfig, groups: Groups, members: Sequence[Member]) -> None:
        """Start without a slow rank.

        Args:
            config: factor and number of log lines from which a rank counts as slow.
            groups: position of this rank.
            members: every rank.
        """
        self._config = config
        self._groups = groups
        self._members = members
        self._slow_lines: dict[int, int] = {}

    def read(self, step: int, work_seconds_per_step: float) -> dict[str, float]:
        """Compare the ranks, and warn of one that stays slow; all ranks must call.

        Args:
            step: steps taken.
            work_seconds_per_step: this rank's seconds outside of collectives.

        Returns:
            `slowest_rank` and `slowest_rank_ratio`, its work over the median; nothing if the run
            has one rank.
        """
        if self._groups.world_size == 1:
            return {}
        seconds = gather_everywhere(work_seconds_per_step)
        ratios = work_ratios(seconds, self._groups)
        for rank in self._newly_slow(ratios):
            if self._groups.rank == LEADER:
                logger.warning(
                    "step %d: %s needs %.1f times as long for its own work as the median rank, "
                    "%.3f s a step, over %d log lines: all others wait for it. Look at that "
                    "machine (clock, heat, other jobs, disk, network), or run without it",
                    step,
                    self._members[rank],
                    ratios[rank],
                    seconds[rank],
                    self._config.straggler_windows,
                )
        slowest = max(range(len(ratios)), key=ratios.__getitem__)
        return {"slowest_rank": float(slowest), "slowest_rank_ratio": ratios[slowest]}

    def _newly_slow(self, ratios: list[float]) -> list[int]:
        """Count each rank's slow log lines in a row; return the ranks to warn of now."""
        slow = [rank for rank, ratio in enumerate(ratios) if ratio > self._config.straggler_factor]
        self._slow_lines = {rank: self._slow_lines.get(rank, 0) + 1 for rank in slow}
        return [rank for rank in slow if self._slow_lines[rank] == self._config.straggler_windows]


def work_ratios(seconds: list[float], groups: Groups) -> list[float]:
    """Return each rank's work over the lower median of its stage, or of all if it has no peer.

    The lower median makes the faster one of two ranks the measure.

    Args:
        seconds: work per step, by rank.
        groups: the layout.
    """
    stages = [coordinates_of(rank, groups).pipeline for rank in range(len(seconds))]
    ratios = []
    for rank, stage in enumerate(stages):
        peers = [seconds[other] for other, its in enumerate(stages) if its == stage]
        median = median_low(peers if len(peers) > 1 else seconds)
        ratios.append(seconds[rank] / median if median > 0 else 1.0)
    return ratios
