"""Results: a JSON file with commit and machine, and the requirements that they reach or miss."""

import os
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ernie_vilg.storage.files import write_json

ROOT = Path(__file__).resolve().parents[2]
OUTPUTS = Path("outputs/benchmarks")


def output_path(name: str, suffix: str = ".json", *, quick: bool = False) -> Path:
    """Return the path of a benchmark's output; a quick run has files of its own."""
    return OUTPUTS / f"{name}{'_quick' if quick else ''}{suffix}"


def picture_path(name: str, *, quick: bool) -> Path:
    """Return the path of a benchmark's chart; only a full run replaces the one in docs/images."""
    return output_path(name, ".png", quick=True) if quick else ROOT / f"docs/images/{name}.png"


def write_results(name: str, results: Any, *, quick: bool = False, device: str = "") -> None:
    """Write outputs/benchmarks/NAME.json.

    Args:
        name: the benchmark.
        results: JSON values.
        quick: whether the run was too short for its figures to count.
        device: the name of the GPU, where one was measured.
    """
    content = {"commit": commit(), "hardware": hardware(device), "results": results}
    write_json(output_path(name, quick=quick), content)


def commit() -> str:
    """Return the abbreviated commit of the code, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def hardware(device: str = "") -> str:
    """Return one line about the machine: GPU, processor, cores and the version of torch."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    processor = f"{models[0] if models else 'CPU'}, {os.cpu_count()} cores"
    return ", ".join([*filter(None, [device]), processor, f"torch {version('torch')}"])


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A figure that a benchmark must reach."""

    what: str
    """Name of the figure."""
    value: float
    """Measured value."""
    bound: float
    """Required value."""
    unit: str
    """Unit of both."""
    is_lower_better: bool = False
    """Whether the value must stay below the bound."""
    baseline: str = "required"
    """Origin of the bound."""
    spread: Sequence[float] = field(default_factory=tuple)
    """Values of single repeats."""

    @property
    def is_reached(self) -> bool:
        """Whether the value is on the right side of the bound."""
        if self.is_lower_better:
            return self.value < self.bound
        return self.value >= self.bound

    def line(self) -> str:
        """Return the requirement and its value as one line."""
        sign = "<" if self.is_lower_better else ">="
        reached = "reached" if self.is_reached else "NOT REACHED"
        if self.value > 0:  # memory may shrink
            by = self.bound / self.value if self.is_lower_better else self.value / self.bound
            reached += f", {by:.2f} x"
        spread = f" ({shown(min(self.spread))} to {shown(max(self.spread))})" if self.spread else ""
        value = f"{shown(self.value)} {self.unit}{spread}"
        return f"{self.what:58} {value:36} {sign} {shown(self.bound):>7}: {reached}"


def median_requirement(
    what: str, values: Sequence[float], bound: float, unit: str, **rest: Any
) -> Requirement:
    """Return a requirement on the median of repeats."""
    spread = values if len(values) > 1 else ()
    middle = statistics.median(values)
    return Requirement(what=what, value=middle, bound=bound, unit=unit, spread=spread, **rest)


def print_requirements(requirements: Sequence[Requirement], *, quick: bool = False) -> None:
    """Print whether each requirement is reached; a quick run measures too little to tell."""
    if quick:
        print("\n--quick: too little data to tell whether requirements are reached")
        return
    print("\nmust reach:")
    for requirement in requirements:
        print(f"  {requirement.line()}")


def shown(value: float) -> str:
    """Return a number with as many digits as its size needs."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
