"""Which rank holds up the others: the one that works while they wait.

A step takes as long as its slowest rank needs, so the time of a step says nothing about who that
is. What a rank spends outside of collectives does. Stages have different layers, so ranks are
compared with those of their own stage, where there are any.

Source: ours; per-rank outliers as in MegaScale (arXiv:2402.15627, section 5).
"""

import logging
import socket
from dataclasses import dataclass
from statistics import median_low

from ernie_vilg.config.watch import WatchConfig
from ernie_vilg.parallel.layout.collectives import LEADER, gather_everywhere
from ernie_vilg.parallel.layout.coordinates import coordinates_of
from ernie_vilg.parallel.layout.groups import Groups

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One rank's own work over a log line's steps."""

    host: str
    """Machine."""
    seconds_per_step: float
    """Outside of collectives."""


class Stragglers:
    """Looks for slow ranks at every log line."""

    def __init__(self, config: WatchConfig, groups: Groups) -> None:
        """Suspect nobody yet.

        Args:
            config: what slow means.
            groups: this rank's place.
        """
        self._config = config
        self._groups = groups
        self._slow_lines: dict[int, int] = {}

    def read(self, step: int, work_seconds_per_step: float) -> dict[str, float]:
        """Compare the ranks, and warn of one that stays slow; all ranks must call.

        Args:
            step: steps taken.
            work_seconds_per_step: of this rank, outside of collectives.

        Returns:
            `slowest_rank` and `slowest_rank_ratio`, its work over the median; nothing where one
            rank works alone.
        """
        if self._groups.world_size == 1:
            return {}
        own = Work(host=socket.gethostname(), seconds_per_step=work_seconds_per_step)
        works = gather_everywhere(own)
        ratios = work_ratios([work.seconds_per_step for work in works], self._groups)
        for rank in self._newly_slow(ratios):
            if self._groups.rank == LEADER:
                logger.warning(
                    "step %d: rank %d (%s on %s) needs %.1f times as long for its own work as the "
                    "median rank, %.3f s a step, over %d log lines: all others wait for it. Look "
                    "at that machine (clock, heat, other jobs, disk, network), or leave it out",
                    step,
                    rank,
                    coordinates_of(rank, self._groups),
                    works[rank].host,
                    ratios[rank],
                    works[rank].seconds_per_step,
                    self._config.straggler_windows,
                )
        slowest = max(range(len(ratios)), key=ratios.__getitem__)
        return {"slowest_rank": float(slowest), "slowest_rank_ratio": ratios[slowest]}

    def _newly_slow(self, ratios: list[float]) -> list[int]:
        """Count the lines for which each rank has been slow; return whom to warn of now."""
        slow = [rank for rank, ratio in enumerate(ratios) if ratio > self._config.straggler_factor]
        self._slow_lines = {rank: self._slow_lines.get(rank, 0) + 1 for rank in slow}
        return [rank for rank in slow if self._slow_lines[rank] == self._config.straggler_windows]


def work_ratios(seconds: list[float], groups: Groups) -> list[float]:
    """Return each rank's work over the lower median of its stage, or of all if it has no peer.

    The lower median, so that of two ranks the faster one is the measure.

    Args:
        seconds: of work per step, by rank.
        groups: gives the layout.
    """
    stages = [coordinates_of(rank, groups).pipeline for rank in range(len(seconds))]
    ratios = []
    for rank, stage in enumerate(stages):
        peers = [seconds[other] for other, its in enumerate(stages) if its == stage]
        median = median_low(peers if len(peers) > 1 else seconds)
        ratios.append(seconds[rank] / median if median > 0 else 1.0)
    return ratios
