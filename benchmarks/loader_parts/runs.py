"""The measurements of benchmarks/loader.py, and the processes that make them.

Pairs are read by the two sides in turn, pictures by both at the same time.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.loader_parts.data_sets import RESUMED, STREAM, TOKENS, DataSettings
from benchmarks.support.measurer import Measurer, Result, Task

PAIRS, PICTURES = 256, 32
"""Samples per batch."""
FEW_PAIRS = (16, 64)
"""Smaller batches: other sizes of a rank's part of a step."""

MEMORY, FAMILY = "memory of a rank", "memory of a rank and its worker"
START, WORKER_START = "start", "start, one worker"
PROFILE, WORKER = "profile", "tokens, ours, one worker, as the rank sees them"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement."""

    name: str
    """Name of the measurement; repeats share it."""
    module: str
    """Module of benchmarks.loader_parts that measures."""
    task: Task
    """Task for the process."""
    is_pinned: bool = True
    """Whether it runs on one core."""
    is_kept: bool = False
    """Whether its process also makes the other measurements of this module."""
    beside: "Run | None" = None
    """Measurement that runs at the same time on the same core; the kernel alternates them."""


def token_runs(folder: Path, settings: DataSettings, repeats: int, *, quick: bool) -> list[Run]:
    """Return reads of token shards; each run of webdataset's reads other files."""
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

    Pillow takes most of the time on both sides. The rest differs by less than the machine's speed
    varies from one second to the next, so both sides read at the same time.
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
    """Return the measurements of our side alone."""
    tokens = {"folder": str(folder / TOKENS), "batch_size": PAIRS}
    stream = {**tokens, "folder": str(folder / STREAM), "samples": 1_000_000}
    num_samples = settings.resumed_shards * settings.resumed_samples
    # With 145 million samples this is position 10^8.
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
        if not run.is_kept:
            with self._start(run) as measurer:
                return measurer.ask(run.task)
        if run.module not in self._kept:
            self._kept[run.module] = self._stack.enter_context(self._start(run))
        return self._kept[run.module].ask(run.task)

    def _start(self, run: Run) -> Measurer:
        core = self._core if run.is_pinned else None
        return Measurer(f"loader_parts.{run.module}", core=core, shows_progress=True)


def run_all(runs: Sequence[Run], core: int) -> dict[str, list[Result]]:
    """Make and announce one measurement after another; return the results by name."""
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
                    del result["wall"]  # includes the other's turns
                results.setdefault(each.name, []).append(result)
    return results
