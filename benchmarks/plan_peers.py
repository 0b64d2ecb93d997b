"""Steps that peers published, predicted by the planner's own arithmetic.

    python benchmarks/plan_peers.py

Two rows are calibrated on, one number each: what share of the peak large matrix products of an A100
and of an H100 reach. All the other rows are predicted, with nothing fitted. Prints a table and
writes outputs/benchmarks/plan_peers.json. No GPU, a second.

benchmarks/peers/ says of each row what is published, where, and what is assumed.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from benchmarks.peers.runs import peer_runs
from benchmarks.peers.shapes import PeerRun
from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.planning.step_time import Efficiencies, step_time
from ernie_vilg.storage.files import write_json

GOAL = 0.15
"""Error up to which a row counts as reproduced."""
_CONF = Path(__file__).parents[1] / "conf/gpu"


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """One row of the comparison."""

    name: str
    """Whose run."""
    peer: str
    """Who published it."""
    published_seconds: float
    """Of a step."""
    predicted_seconds: float
    """Of a step."""
    is_calibration: bool
    """Whether the planner has seen it."""

    @property
    def error(self) -> float:
        """Predicted over published, less 1."""
        return self.predicted_seconds / self.published_seconds - 1


def read_gpu(name: str) -> GpuConfig:
    """Return a preset of conf/gpu/."""
    return GpuConfig(**OmegaConf.load(_CONF / f"{name}.yaml"))


def calibrated(run: PeerRun) -> float:
    """Return the factor on matrix products with which the prediction of a run is right."""
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
    """Predict every run with the factor of its generation of GPUs, 1 where none is fitted."""
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
    write_json(
        Path("outputs/benchmarks/plan_peers.json"),
        {"rows": [{**vars(row), "error": row.error} for row in rows]},
    )


def table(rows: Sequence[Reproduced]) -> list[str]:
    """Return the comparison as a Markdown table and its summary."""
    lines = ["| run | published step, s | predicted, s | error |", "|---|---|---|---|"]
    for row in rows:
        error = "calibrated on" if row.is_calibration else f"{row.error:+.0%}"
        lines.append(
            f"| {row.name} | {row.published_seconds:.3g} | {row.predicted_seconds:.3g} | {error} |"
        )
    return [*lines, "", *summary(rows)]


def summary(rows: Sequence[Reproduced]) -> list[str]:
    """Return how many rows are reproduced, of all and of each peer."""
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
