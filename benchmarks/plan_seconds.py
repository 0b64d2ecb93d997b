"""Seconds from the start of Python to the planner's answer.

    python benchmarks/plan_seconds.py

Plans the 10B on 1,024 H100 a few times and times the moments at which the table is on the terminal
and at which curve and picture are done too. The table must come within 5 seconds. Writes
outputs/benchmarks/plan_seconds.json.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.support.results import (
    OUTPUTS,
    ROOT,
    median_requirement,
    print_requirements,
    write_results,
)

COMMAND = ("launch/plan.py", "experiment=ernie_vilg_10b", "num_gpus=1024", "gpu=h100-80gb")
REPEATS = 5
LIMIT = 5.0
"""Largest seconds until the table is there."""


def seconds_of_a_plan(plan_dir: Path) -> tuple[float, float]:
    """Return the seconds until the table is printed, and until the program has ended."""
    began = time.monotonic()
    words = [sys.executable, "-u", *COMMAND, f"plan_dir={plan_dir}"]
    table = 0.0
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("not possible:"):  # the rest of the table comes at once
                table = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(COMMAND)} ended with {process.returncode}")
    return table, time.monotonic() - began


def main() -> None:
    """Measure, print and write."""
    runs = [seconds_of_a_plan(OUTPUTS / "plan") for _ in range(REPEATS)]
    tables, wholes = zip(*runs, strict=True)
    middle = statistics.median(wholes)
    print(f"with curve and picture: {middle:.1f} s ({min(wholes):.1f} to {max(wholes):.1f})")
    print_requirements(
        [median_requirement("table of the plan", tables, LIMIT, "s", is_lower_better=True)]
    )
    write_results("plan_seconds", {"command": list(COMMAND), "table": tables, "whole": wholes})


if __name__ == "__main__":
    main()
