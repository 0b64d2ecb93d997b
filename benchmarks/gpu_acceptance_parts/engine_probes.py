"""Probes of the engine on a small model: its losses in every mode, and its resume."""

import tempfile
import time
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu_acceptance_parts.small_engine import losses_of_steps, small_engine
from benchmarks.support.measurer import Result, Task

STEPS = 3


def losses(task: Task) -> Result:
    """Take three steps; return their losses, the compiler's graph breaks and the optimizer."""
    counters.clear()
    started = time.monotonic()
    small = small_engine(task)
    found = losses_of_steps(small, 0, 1)
    first = time.monotonic() - started
    found += losses_of_steps(small, 1, STEPS)
    return {
        "losses": found,
        "gradient_norm": small.engine.gradient_norm(),
        "first_step_seconds": first,
        "graph_breaks": sum(counters["graph_break"].values()),
        "optimizer": type(small.engine.deepspeed_engine.optimizer).__name__,
    }


def resume(task: Task) -> Result:
    """Take two steps, save, take two more, load, and take those two again."""
    from ernie_vilg.parallel.engine.snapshot import Snapshot

    small = small_engine(task)
    losses_of_steps(small, 0, 2)
    snapshot = Snapshot()
    started = time.monotonic()
    small.engine.save(snapshot)
    seconds = time.monotonic() - started
    with tempfile.TemporaryDirectory() as folder:
        for name, content in snapshot.files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, path)
        once = losses_of_steps(small, 2, 4)
        small.engine.load(Path(folder))
    again = losses_of_steps(small, 2, 4)
    return {
        "once": once,
        "again": again,
        "save_seconds": seconds,
        "snapshot_bytes": snapshot.num_bytes,
    }
