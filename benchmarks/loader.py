"""What the loader costs, beside webdataset's own pipelines over the same files.

    python benchmarks/loader.py           # under 6 minutes, and one more to make the data at first
    python benchmarks/loader.py --quick   # shows that it works; too short for the requirements

The files are in the page cache. What is compared is read by two processes on one core, pairs in
turn and pictures at the same time, so that what else the machine does falls on both. "Per core" is
by the processor's time of all threads of the process, which on a shared machine is steadier than
the wall clock's, shown beside it. Ours reads a whole epoch with readers that are new: hashing and
indexing every shard, order, reads and decoding are all in it.

Prints the tables, writes outputs/benchmarks/loader.json and draws docs/images/loader.png.
"""

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run by its path: this folder is not installed
    sys.path.insert(0, str(ROOT))

from benchmarks.loader_parts import chart  # noqa: E402
from benchmarks.loader_parts.data_sets import (  # noqa: E402
    QUICK,
    RESUMED,
    STREAM,
    TOKENS,
    DataSettings,
    make_data,
)
from benchmarks.loader_parts.process import Measurer, Result, Task  # noqa: E402
from ernie_vilg.storage.files import write_json  # noqa: E402

OUTPUTS = Path("outputs/benchmarks")
PAIRS, PICTURES = 256, 32
"""Samples per batch."""
FEW_PAIRS = (16, 64)
"""Other sizes of a rank's share of a step."""

TOKEN_RATE, TOKEN_RATIO, IMAGE_RATIO = 20_000.0, 5.0, 1.0
MEMORY_MB, START_SECONDS = 300.0, 3.0
FLAT_MB = 10.0
"""What the memory may grow by from the first quarter of a million samples to the last: 13 bytes for
each between, where whatever keeps one number per sample takes 36."""

BASELINE = "webdataset, same files, same run"
MEMORY, FAMILY = "memory of a rank", "memory of a rank and its worker"
START, WORKER_START = "start", "start, one worker"
PROFILE, WORKER = "profile", "tokens, ours, one worker, as the rank sees them"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement."""

    name: str
    """What is measured; repeats share it."""
    module: str
    """Of benchmarks.loader_parts."""
    task: Task
    """What it is asked."""
    is_pinned: bool = True
    """Whether it runs on one core."""
    is_kept: bool = False
    """Whether its process also makes the other measurements of this module."""
    beside: "Run | None" = None
    """Another that shares the core with this one, in short turns that the kernel gives out."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What the loader must reach."""

    what: str
    value: float
    bound: float
    unit: str
    is_lower_better: bool = False
    baseline: str = "required"
    spread: Sequence[float] = field(default_factory=tuple)
    """Repeats."""

    @property
    def is_reached(self) -> bool:
        """Whether the value is on the right side of the bound."""
        if self.is_lower_better:
            return self.value < self.bound
        return self.value >= self.bound

    def line(self) -> str:
        """Say it in one line."""
        sign = "<" if self.is_lower_better else ">="
        reached = "reached" if self.is_reached else "NOT REACHED"
        if self.value > 0:  # memory may shrink
            by = self.bound / self.value if self.is_lower_better else self.value / self.bound
            reached += f", {by:.2f} x"
        spread = f" ({shown(min(self.spread))} to {shown(max(self.spread))})" if self.spread else ""
        value = f"{shown(self.value)} {self.unit}{spread}"
        return f"{self.what:58} {value:36} {sign} {shown(self.bound):>7}: {reached}"


def shown(value: float) -> str:
    """Write a number with as many digits as it deserves."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


# --- What is run.


def token_runs(folder: Path, settings: DataSettings, repeats: int, *, quick: bool) -> list[Run]:
    """Return reads of token shards; every run of webdataset's has its own part of the files."""
    variants = {"": True, ", not shuffled": False}
    if quick:
        del variants[", not shuffled"]
    count = max(1, settings.token_shards // (repeats * len(variants)))
    runs: list[Run] = []
    first = 0
    for _ in range(repeats):
        task = {"measure": "tokens", "folder": str(folder / TOKENS), "batch_size": PAIRS}
        runs.append(Run(name="tokens, ours", module="ours", task=task, is_kept=True))
        for name, is_shuffled in variants.items():
            part = {"first_shard": first, "num_shards": count, "is_shuffled": is_shuffled}
            runs.append(
                Run(
                    name=f"tokens, webdataset{name}",
                    module="baseline",
                    task={**task, **part},
                    is_kept=True,
                )
            )
            first = (first + count) % settings.token_shards
    return runs


def image_runs(folder: Path, repeats: int) -> list[Run]:
    """Return reads of image shards.

    Pillow is most of both: the difference is smaller than what the machine's speed varies by from
    one second to the next, so both read at the same time.
    """
    runs = []
    for kind in ("png", "jpeg"):
        task = {"measure": "images", "folder": str(folder / kind), "batch_size": PICTURES}
        other = Run(
            name=f"{kind}, webdataset",
            module="baseline",
            task={**task, "first_shard": 0, "num_shards": None, "is_shuffled": True},
            is_kept=True,
        )
        ours = Run(name=f"{kind}, ours", module="ours", task=task, is_kept=True, beside=other)
        runs += [ours] * repeats
    return runs


def other_runs(folder: Path, settings: DataSettings, *, quick: bool) -> list[Run]:
    """Return the measurements that nothing is compared with."""
    tokens = {"folder": str(folder / TOKENS), "batch_size": PAIRS}
    stream = {**tokens, "folder": str(folder / STREAM), "samples": 1_000_000}
    num_samples = settings.resumed_shards * settings.resumed_samples
    # Of 145 million samples, that is position 10^8.
    position = num_samples * 100 // 145
    start = {"folder": str(folder / RESUMED), "batch_size": PAIRS, "position": position}
    runs = [
        Run(name=PROFILE, module="ours", task={**tokens, "measure": "profile"}),
        Run(name=MEMORY, module="ours", task={**stream, "measure": "memory"}),
    ]
    starts = [Run(name=START, module="resumed", task={**start, "num_workers": 0}, is_pinned=False)]
    if quick:
        return runs + starts
    of_worker = {**start, "num_workers": 1}
    starts += [Run(name=WORKER_START, module="resumed", task=of_worker, is_pinned=False)]
    family = {**stream, "measure": "memory_of_worker", "samples": 300_000}
    worker = {**tokens, "measure": "tokens_of_worker"}
    return [
        *runs,
        Run(name=FAMILY, module="ours", task=family, is_pinned=False),
        *starts * 3,
        *[Run(name=WORKER, module="ours", task=worker, is_pinned=False)] * 3,
        *[
            Run(
                name=f"tokens, ours, {count} a step",
                module="ours",
                task={**tokens, "measure": "tokens", "batch_size": count},
                is_kept=True,
            )
            for count in FEW_PAIRS
        ],
    ]


class Processes:
    """The measuring processes."""

    def __init__(self, core: int, stack: ExitStack) -> None:
        self._core = core
        self._stack = stack
        self._kept: dict[str, Measurer] = {}

    def ask(self, run: Run) -> Result:
        """Make a measurement, in a process that is kept or in a new one."""
        if run.is_kept:
            if run.module not in self._kept:
                measurer = Measurer(run.module, core=self._core)
                self._kept[run.module] = self._stack.enter_context(closing(measurer))
            return self._kept[run.module].ask(run.task)
        with closing(Measurer(run.module, core=self._core if run.is_pinned else None)) as measurer:
            return measurer.ask(run.task)


def run_all(runs: Sequence[Run], core: int) -> dict[str, list[Result]]:
    """Run one after another, saying which; return the results by name."""
    results: dict[str, list[Result]] = {}
    started = time.monotonic()
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(2))
        processes = Processes(core, stack)
        for number, run in enumerate(runs, start=1):
            together = [run] if run.beside is None else [run, run.beside]
            seconds = time.monotonic() - started
            names = " and ".join(each.name for each in together)
            print(f"[{seconds:4.0f} s, {number} of {len(runs)}] {names}", flush=True)
            found = list(threads.map(processes.ask, together))
            for each, result in zip(together, found, strict=True):
                if len(together) > 1:
                    del result["wall"]  # part of it was the other's
                results.setdefault(each.name, []).append(result)
    return results


# --- What comes out of it.


def rates(results: Sequence[Result], clock: str = "processor") -> list[float]:
    """Return samples per second of each repeat."""
    return [1 / result[clock] for result in results]


def ratios(ours: Sequence[Result], others: Sequence[Result]) -> list[float]:
    """Return, repeat by repeat, how many times faster ours are."""
    return [b["processor"] / a["processor"] for a, b in zip(ours, others, strict=True)]


def requirements(results: dict[str, list[Result]]) -> list[Requirement]:
    """Return what must be reached, with what was."""
    ours = results["tokens, ours"]
    memory, start = results[MEMORY][0], results[START]
    quarter = max(1, len(memory["mb"]) // 4)
    growth = statistics.mean(memory["mb"][-quarter:]) - statistics.mean(memory["mb"][:quarter])
    compared = [
        (name, ours, TOKEN_RATIO)
        for name in ("tokens, webdataset", "tokens, webdataset, not shuffled")
    ] + [(f"{kind}, webdataset", results[f"{kind}, ours"], IMAGE_RATIO) for kind in ("png", "jpeg")]
    return [
        _median("tokens per second and core", rates(ours), TOKEN_RATE, "samples/s"),
        *(
            _median(
                f"times the rate of: {name}",
                ratios(mine, results[name]),
                bound,
                "x",
                baseline=BASELINE,
            )
            for name, mine, bound in compared
            if name in results
        ),
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
        _median(
            "manifest to first batch of a resumed run",
            [result["first_batch"] for result in start],
            START_SECONDS,
            "s",
            is_lower_better=True,
        ),
    ]


def _median(
    what: str, values: Sequence[float], bound: float, unit: str, **rest: Any
) -> Requirement:
    middle = statistics.median(values)
    spread = values if len(values) > 1 else ()
    return Requirement(what=what, value=middle, bound=bound, unit=unit, spread=spread, **rest)


def print_rates(results: dict[str, list[Result]]) -> None:
    """Print samples per second of everything that has them."""
    print(f"\n{'samples per second':50} {'per core':>9} {'lowest':>9} {'highest':>9} {'wall':>9}")
    for name, repeats in results.items():
        if "processor" not in repeats[0]:
            continue
        wall = f"{statistics.median(rates(repeats, 'wall')):,.0f}" if "wall" in repeats[0] else ""
        found = rates(repeats)
        cells = [f"{value:,.0f}" for value in (statistics.median(found), min(found), max(found))]
        if name == WORKER:  # most of its work is another process's
            cells = [""] * 3
        print(f"{name:50} " + " ".join(f"{cell:>9}" for cell in [*cells, wall]))


def print_rest(results: dict[str, list[Result]]) -> None:
    """Print where a sample's time goes, the seconds of a start, and a family's memory."""
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
    """Return all that was measured, as JSON."""
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


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little data, one repeat")
    parser.add_argument("--repeats", type=int, default=5, help="runs of what is compared")
    parser.add_argument("--core", type=int, default=1, help="on which what is compared runs")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quick, repeats = options.quick, 1 if options.quick else options.repeats
    settings = QUICK if quick else DataSettings()
    folder = OUTPUTS / "loader" / ("data-quick" if quick else "data")
    make_data(folder, settings)
    results = run_all(
        [
            *token_runs(folder, settings, repeats, quick=quick),
            *image_runs(folder, repeats),
            *other_runs(folder, settings, quick=quick),
        ],
        options.core,
    )
    print_rates(results)
    print_rest(results)
    reached = requirements(results)
    if quick:
        print("\n--quick: too little data to say what is reached")
    else:
        print("\nmust reach:")
        for requirement in reached:
            print(f"  {requirement.line()}")
    write_json(OUTPUTS / f"loader{'_quick' if quick else ''}.json", figures(results, reached))
    picture = OUTPUTS / "loader_quick.png" if quick else ROOT / "docs/images/loader.png"
    chart.draw(picture, bars(results), results[MEMORY][0], limit_mb=MEMORY_MB)


def bars(results: dict[str, list[Result]]) -> list[chart.Bars]:
    """Return what the picture shows side by side."""
    found = []
    for kind, name in (("tokens", "tokens"), ("png", "PNG"), ("jpeg", "JPEG")):
        ours, others = results[f"{kind}, ours"], results[f"{kind}, webdataset"]
        ratio = statistics.median(ratios(ours, others))
        found.append((name, rates(ours), rates(others), ratio))
    return found


if __name__ == "__main__":
    main()
