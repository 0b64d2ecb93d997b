"""Steps that peers published, predicted by the planner's own arithmetic.

    python benchmarks/plan_peers.py

Two rows calibrate one number each: the fraction of the peak that large matrix products reach on an
A100 and on an H100. Nothing is fitted to the other rows. Prints a table and writes
outputs/benchmarks/plan_peers.json. Takes a second and no GPU.

benchmarks/peers/ names the publication of each row and its assumptions.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.peers.runs import peer_runs
from benchmarks.peers.shapes import PeerRun
from benchmarks.support import tables
from benchmarks.support.models import read_gpu
from benchmarks.support.results import write_results
from ernie_vilg.planning.step_time import Efficiencies, step_time

GOAL = 0.15
"""Largest error with which a row counts as reproduced."""


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """One row of the comparison."""

    name: str
    """Name of the run."""
    peer: str
    """Project that published it."""
    published_seconds: float
    """Published seconds of a step."""
    predicted_seconds: float
    """Predicted seconds of a step."""
    is_calibration: bool
    """Whether a factor is fitted to it."""

    @property
    def error(self) -> float:
        """Predicted over published, less 1."""
        return self.predicted_seconds / self.published_seconds - 1


def calibrated(run: PeerRun) -> float:
    """Return the factor on matrix products that makes the prediction of a run exact."""
    low, high = 0.3, 1.6
    for _ in range(40):
        middle = (low + high) / 2
        is_slow = predicted(run, middle) > run.seconds
        low, high = (middle, high) if is_slow else (low, middle)
    return (low + high) / 2


def predicted(run: PeerRun, matrix: float) -> float:
    """Return the seconds of a peer's step."""
    rates = replace(Efficiencies(), matrix=matrix)
    gpu = read_gpu(run.gpu)
    if run.memory_bandwidth is not None:
        gpu = replace(gpu, memory_bandwidth=run.memory_bandwidth)
    return step_time(run.workload, run.spread, gpu, rates).total


def compare(runs: Sequence[PeerRun]) -> list[Reproduced]:
    """Predict every run with the fitted factor of its generation of GPUs, or 1 without one."""
    factors = {run.generation: calibrated(run) for run in runs if run.is_calibration}
    return [
        Reproduced(
            name=run.name,
            peer=run.peer,
            published_seconds=run.seconds,
            predicted_seconds=predicted(run, factors.get(run.generation, 1.0)),
            is_calibration=run.is_calibration,
        )
        for run in runs
    ]


def main() -> None:
    """Print and write the comparison."""
    rows = compare(peer_runs())
    for line in table(rows):
        print(line)
    write_results("plan_peers", [{**vars(row), "error": row.error} for row in rows])


def table(rows: Sequence[Reproduced]) -> list[str]:
    """Return the comparison as a Markdown table and its summary."""
    lines = [tables.header(["run", "published step, s", "predicted, s", "error"])]
    for row in rows:
        error = "calibrated on" if row.is_calibration else f"{row.error:+.0%}"
        seconds = (f"{row.published_seconds:.3g}", f"{row.predicted_seconds:.3g}")
        lines.append(tables.row([row.name, *seconds, error]))
    return [*lines, "", *summary(rows)]


def summary(rows: Sequence[Reproduced]) -> list[str]:
    """Return the number of reproduced rows, in all and of each peer."""
    free = [row for row in rows if not row.is_calibration]
    by_peer: dict[str, list[Reproduced]] = {}
    for row in free:
        by_peer.setdefault(row.peer, []).append(row)
    words = [f"{peer} {_num_met(own)} of {len(own)}" for peer, own in by_peer.items()]
    median = statistics.median(abs(row.error) for row in free)
    return [
        f"{_num_met(free)} of {len(free)} within {GOAL:.0%}, median error {median:.0%}:",
        f"{', '.join(words)}.",
    ]


def _num_met(rows: Sequence[Reproduced]) -> int:
    return sum(abs(row.error) <= GOAL for row in rows)


if __name__ == "__main__":
    main()
