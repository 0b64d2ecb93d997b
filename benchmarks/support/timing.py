"""Clocks, and runs in turn.

What is compared alternates run by run, so that other load on the machine hits all of it alike. On
a shared machine a process's own processor time is steadier than the wall clock.
"""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from benchmarks.support.measurer import Result

T = TypeVar("T")


def alternate(runs: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Make each run in turn; return the results of each by name, first run dropped.

    Args:
        runs: what to run, by name; the first run of each only warms up.
        repeats: runs of each whose results are kept.
    """
    found: dict[str, list[T]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            found[name].append(run())
    return {name: results[1:] for name, results in found.items()}


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def per_sample(self, num_samples: int) -> Result:
        """Return the number of samples, and the seconds of wall clock and processor per sample.

        Processor time sums all threads of the process.
        """
        return {
            "samples": num_samples,
            "wall": (time.perf_counter() - self._wall) / num_samples,
            "processor": (time.process_time() - self._processor) / num_samples,
        }
