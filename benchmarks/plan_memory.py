"""Error of predicted peak memory against the bytes that ranks allocate, layout by layout.

    python benchmarks/plan_memory.py            # 14 layouts on a CPU (11 minutes), 6 on a GPU
    python benchmarks/plan_memory.py --quick    # the first two
    python benchmarks/plan_memory.py --stages   # and every stage of a pipeline by itself

Every rank takes three steps through the real engine. The measured value is the largest number of
bytes that torch had allocated at any time since before the engine was built, on the worst rank of
the worst stage. On a CPU, host memory is device memory: an offloaded optimizer counts as well.
DeepSpeed's bucket of 500 million elements, 2 GB, would hide errors in a model of 15 million
parameters, so the error is that of the bytes without it.

Prints the table and writes outputs/benchmarks/plan_memory.json.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.plan_memory_parts.rows import GPU_ROWS, ROWS, Row
from benchmarks.support import tables
from benchmarks.support.measurer import ask_all, started_ranks
from benchmarks.support.results import Requirement, print_requirements, write_results
from ernie_vilg.planning.engine_memory import REDUCE_BUCKET
from ernie_vilg.planning.memory import MemoryEstimate, estimate_memory

LIMIT = 0.05
"""Largest allowed error, as a fraction of the measured bytes."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of the table."""

    name: str
    """Name of the layout."""
    predicted: int
    """Bytes of the worst rank, without DeepSpeed's bucket."""
    measured: int
    """Bytes of the worst rank, without DeepSpeed's bucket."""
    bucket: int
    """Bytes of the bucket."""

    @property
    def error(self) -> float:
        """Relative error of the prediction; negative where it is too low."""
        return self.predicted / self.measured - 1


def compare(row: Row, measured: int, device_type: str) -> Comparison:
    """Hold a row's measurement against its prediction.

    Args:
        row: the layout.
        measured: bytes of the worst rank.
        device_type: cuda or cpu.
    """
    worst = max(_estimates(row, device_type), key=lambda stage: _counted(stage, device_type))
    return _compare(row, row.name, worst, measured, device_type)


def compare_stages(row: Row, peaks: list[int], device_type: str) -> list[Comparison]:
    """Hold every stage of a pipeline against its prediction, first stage first.

    Args:
        row: the layout.
        peaks: bytes of each rank; the ranks of a stage follow each other.
        device_type: cuda or cpu.
    """
    estimates = _estimates(row, device_type)
    per_stage = len(peaks) // len(estimates)
    return [
        _compare(
            row,
            f"{row.name}: stage {index + 1} of {len(estimates)}",
            estimate,
            max(peaks[index * per_stage : (index + 1) * per_stage]),
            device_type,
        )
        for index, estimate in enumerate(estimates)
    ]


def _estimates(row: Row, device_type: str) -> list[MemoryEstimate]:
    return estimate_memory(row.config, row.world_size, PRECISIONS[row.precision], device_type)


def _compare(
    row: Row, name: str, estimate: MemoryEstimate, measured: int, device_type: str
) -> Comparison:
    size = REDUCE_BUCKET * PRECISIONS[row.precision].itemsize
    bucket = estimate.workspace // size * size  # two of them under a pipeline
    return Comparison(
        name=name,
        predicted=_counted(estimate, device_type) - bucket,
        measured=measured - bucket,
        bucket=bucket,
    )


def _counted(estimate: MemoryEstimate, device_type: str) -> int:
    """Return what torch counts: host memory too, where it is the device's."""
    return estimate.allocated + (estimate.host if device_type == "cpu" else 0)


def measure_row(row: Row) -> list[int]:
    """Start a row's ranks and return the bytes of each."""
    with started_ranks("plan_memory_parts.rank", row.world_size) as ranks:
        return [found["bytes"] for found in ask_all(ranks, {"row": row.name})]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first two layouts alone")
    parser.add_argument("--stages", action="store_true", help="every stage of a pipeline too")
    options = parser.parse_args()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    rows = GPU_ROWS if device_type == "cuda" else ROWS
    compared: list[Comparison] = []
    print(tables.header(["layout", "predicted MB", "measured MB", "error", "bucket MB"]))
    for row in rows[:2] if options.quick else rows:
        compared += (found := _measured(row, device_type, every_stage=options.stages))
        print("\n".join(map(line, found)), flush=True)
    worst = 100 * max(abs(each.error) for each in compared)
    largest = Requirement(
        what="largest error", value=worst, bound=100 * LIMIT, unit="%", is_lower_better=True
    )
    print_requirements([largest])
    write_results(
        "plan_memory",
        [{**asdict(each), "error": each.error} for each in compared],
        quick=options.quick,
        device=torch.cuda.get_device_name() if device_type == "cuda" else "",
    )


def _measured(row: Row, device_type: str, *, every_stage: bool) -> list[Comparison]:
    peaks = measure_row(row)
    worst = compare(row, max(peaks), device_type)
    if not every_stage or row.config.parallelism.pipeline_parallel_size == 1:
        return [worst]
    return [worst, *compare_stages(row, peaks, device_type)]


def line(comparison: Comparison) -> str:
    """Write a comparison as a row of a Markdown table."""
    predicted, measured, bucket = (
        f"{value / 1e6:,.1f}"
        for value in (comparison.predicted, comparison.measured, comparison.bucket)
    )
    error = f"{100 * comparison.error:+.1f} %"
    return tables.row([comparison.name, predicted, measured, error, bucket])


if __name__ == "__main__":
    main()
