"""How long the planner takes to answer, from the start of Python.

    python benchmarks/plan_seconds.py

Types the plan of the 10B on 1,024 H100 a few times, and notes when its table is on the terminal and
when the curve and the picture are done too. The answer is to come within 5 seconds. Writes
outputs/benchmarks/plan_seconds.json.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run by its path: this folder is not installed
    sys.path.insert(0, str(ROOT))

from ernie_vilg.storage.files import write_json  # noqa: E402

OUTPUT = Path("outputs/benchmarks/plan_seconds.json")
COMMAND = ("launch/plan.py", "experiment=ernie_vilg_10b", "num_gpus=1024", "gpu=h100-80gb")
REPEATS = 5
LIMIT = 5.0
"""Seconds within which the table is to be there."""


def seconds_of_a_plan(plan_dir: Path) -> tuple[float, float]:
    """Return the seconds until the table is printed, and until the program has ended."""
    began = time.monotonic()
    words = [sys.executable, "-u", *COMMAND, f"plan_dir={plan_dir}"]
    table = 0.0
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("not possible:"):  # all that follows comes at once
                table = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(COMMAND)} ended with {process.returncode}")
    return table, time.monotonic() - began


def main() -> None:
    """Measure, print and keep."""
    runs = [seconds_of_a_plan(OUTPUT.parent / "plan") for _ in range(REPEATS)]
    tables, wholes = zip(*runs, strict=True)
    for name, seconds in (("table", tables), ("with curve and picture", wholes)):
        print(f"{name}: {statistics.median(seconds):.1f} s ({min(seconds):.1f} to "
              f"{max(seconds):.1f})")  # fmt: skip
    reached = "reached" if statistics.median(tables) < LIMIT else "NOT REACHED"
    print(f"table within {LIMIT:.0f} s: {reached}")
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    write_json(OUTPUT, {"command": list(COMMAND), "table": tables, "whole": wholes})


if __name__ == "__main__":
    main()
