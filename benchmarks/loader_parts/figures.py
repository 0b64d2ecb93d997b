"""Rates, requirements and printed tables of benchmarks/loader.py."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.loader_parts.chart import Bars
from benchmarks.loader_parts.runs import FAMILY, MEMORY, PROFILE, START, WORKER, WORKER_START
from benchmarks.support.measurer import Result
from benchmarks.support.results import Requirement, median_requirement

TOKEN_RATE, TOKEN_RATIO, IMAGE_RATIO = 20_000.0, 5.0, 1.0
MEMORY_MB, START_SECONDS = 300.0, 3.0
FLAT_MB = 10.0
"""Largest growth of memory from the first quarter of a million samples to the last. It allows 13
bytes per sample between them; a reader that keeps one Python number per sample takes 36."""

BASELINE = "webdataset, same files, same run"


def rates(results: Sequence[Result], clock: str = "processor") -> list[float]:
    """Return samples per second of each repeat."""
    return [1 / result[clock] for result in results]


def ratios(ours: Sequence[Result], others: Sequence[Result]) -> list[float]:
    """Return, for each repeat, how many times faster ours is."""
    return [b["processor"] / a["processor"] for a, b in zip(ours, others, strict=True)]


def requirements(results: dict[str, list[Result]]) -> list[Requirement]:
    """Return the required figures with their measured values."""
    tokens = rates(results["tokens, ours"])
    starts = [result["first_batch"] for result in results[START]]
    return [
        median_requirement("tokens per second and core", tokens, TOKEN_RATE, "samples/s"),
        *_compared(results),
        *_memory(results[MEMORY][0]),
        median_requirement(
            "manifest to first batch of a resumed run",
            starts,
            START_SECONDS,
            "s",
            is_lower_better=True,
        ),
    ]


def _compared(results: dict[str, list[Result]]) -> list[Requirement]:
    """Return the rates over webdataset's."""
    sides = [
        ("tokens, ours", "tokens, webdataset", TOKEN_RATIO),
        ("tokens, ours", "tokens, webdataset, not shuffled", TOKEN_RATIO),
        ("png, ours", "png, webdataset", IMAGE_RATIO),
        ("jpeg, ours", "jpeg, webdataset", IMAGE_RATIO),
    ]
    return [
        median_requirement(
            f"times the rate of: {other}",
            ratios(results[ours], results[other]),
            bound,
            "x",
            baseline=BASELINE,
        )
        for ours, other, bound in sides
        if other in results
    ]


def _memory(memory: Result) -> list[Requirement]:
    """Return the largest memory of a rank and its growth."""
    quarter = max(1, len(memory["mb"]) // 4)
    growth = statistics.mean(memory["mb"][-quarter:]) - statistics.mean(memory["mb"][:quarter])
    return [
        Requirement(
            what=f"largest resident memory over {memory['samples'][-1]:,} samples",
            value=memory["peak"],
            bound=MEMORY_MB,
            unit=f"MB ({memory['imported']:.0f} imports)",
            is_lower_better=True,
        ),
        Requirement(
            what="its growth from the first quarter to the last",
            value=growth,
            bound=FLAT_MB,
            unit="MB",
            is_lower_better=True,
        ),
    ]


def print_rates(results: dict[str, list[Result]]) -> None:
    """Print samples per second of all measurements that have them."""
    print(f"\n{'samples per second':50} {'per core':>9} {'lowest':>9} {'highest':>9} {'wall':>9}")
    for name, repeats in results.items():
        if "processor" not in repeats[0]:
            continue
        wall = f"{statistics.median(rates(repeats, 'wall')):,.0f}" if "wall" in repeats[0] else ""
        found = rates(repeats)
        cells = [f"{value:,.0f}" for value in (statistics.median(found), min(found), max(found))]
        if name == WORKER:  # the worker does most of its work
            cells = [""] * 3
        print(f"{name:50} " + " ".join(f"{cell:>9}" for cell in [*cells, wall]))


def print_rest(results: dict[str, list[Result]]) -> None:
    """Print the time of a sample and of a start by part, and the memory of rank and worker."""
    parts = results[PROFILE][0]
    print("\nmicroseconds of a token sample, each part timed alone:")
    print("  " + ", ".join(f"{name} {1e6 * value:.1f}" for name, value in parts.items()))
    print("\nseconds of a start, medians:")
    for name in (START, WORKER_START):
        if name in results:
            print(f"  {name:18} " + ", ".join(_start_parts(results[name])))
    if FAMILY in results:
        family = results[FAMILY][0]["mb"]
        print(f"\n{FAMILY} (PSS): {statistics.median(family):.0f} MB, at most {max(family):.0f}")


def _start_parts(repeats: Sequence[Result]) -> list[str]:
    names = {
        "launch": "python",
        "imports": "imports",
        "server": "worker server",
        "manifest": "manifest",
        "first_batch": "manifest to first batch",
        "total": "in all",
    }
    return [
        f"{label} {statistics.median(result[name] for result in repeats):.2f}"
        for name, label in names.items()
    ]


def figures(
    results: dict[str, list[Result]], reached: Sequence[Requirement]
) -> list[dict[str, Any]]:
    """Return all measured values as JSON values."""
    found: list[dict[str, Any]] = [
        {
            "metric": requirement.what,
            "value": requirement.value,
            "unit": requirement.unit.split(" ")[0],
            "baseline": f"{requirement.baseline}: {requirement.bound}",
            "reached": requirement.is_reached,
        }
        for requirement in reached
    ]
    for name, repeats in results.items():
        for clock in ("processor", "wall"):
            if clock in repeats[0]:
                found.append(
                    {
                        "metric": f"{name}, by {clock}",
                        "value": statistics.median(rates(repeats, clock)),
                        "unit": "samples/s",
                        "baseline": BASELINE if "webdataset" not in name else "",
                        "repeats": rates(repeats, clock),
                    }
                )
    for name in (PROFILE, START, WORKER_START):
        for part in results.get(name, [{}])[0]:
            middle = statistics.median(result[part] for result in results[name])
            found.append(
                {"metric": f"{name}: {part}", "value": middle, "unit": "s", "baseline": ""}
            )
    for name in (MEMORY, FAMILY):
        if name in results:
            value = max(results[name][0]["mb"])
            found.append({"metric": name, "value": value, "unit": "MB", "baseline": ""})
    return found


def bars(results: dict[str, list[Result]]) -> list[Bars]:
    """Return the bars of the chart."""
    found = []
    for kind, name in (("tokens", "tokens"), ("png", "PNG"), ("jpeg", "JPEG")):
        ours, others = results[f"{kind}, ours"], results[f"{kind}, webdataset"]
        ratio = statistics.median(ratios(ours, others))
        found.append((name, rates(ours), rates(others), ratio))
    return found
