"""Steps that peers published, predicted by the planner's own arithmetic.

    python benchmarks/plan_peers.py

Two rows are calibrated on, one number each: what share of the peak large matrix products of an A100
and of an H100 reach. All the other rows are predicted, with nothing fitted. Prints a table and
writes outputs/benchmarks/plan_peers.json. No GPU, a second.

Sources: Korthikanti et al. 2022 (arXiv:2205.05198, table 5), Narayanan et al. 2021
(arXiv:2104.04473, table 1), and the tables of the peers' repositories; docs/scaling.md says what
of each row is published and what is assumed.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from benchmarks.peer_runs import PeerRun, peer_runs
from ernie_vilg.config.plan import GpuConfig
from ernie_vilg.files import write_json
from ernie_vilg.planning.step_time import Efficiencies, step_time

GOAL = 0.15
"""Error up to which a row counts as reproduced."""
_CONF = Path(__file__).parents[1] / "conf/gpu"


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """One row of the comparison."""

    name: str
    """Whose run."""
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
    return step_time(run.work, run.spread, read_gpu(run.gpu), rates).total


def compare(runs: Sequence[PeerRun]) -> list[Reproduced]:
    """Predict every run with the factor of its generation of GPUs."""
    factors = {run.generation: calibrated(run) for run in runs if run.is_calibration}
    return [
        Reproduced(
            name=run.name,
            published_seconds=run.seconds,
            predicted_seconds=predicted(run, factors[run.generation]),
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
    free = [abs(row.error) for row in rows if not row.is_calibration]
    met = sum(error <= GOAL for error in free)
    return [
        *lines,
        "",
        f"{met} of {len(free)} within {GOAL:.0%}, median error {statistics.median(free):.0%}.",
    ]


if __name__ == "__main__":
    main()
