"""Probes of the engine on a small model: losses in every mode, resume, waits of the host."""

import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu_acceptance_parts.small_engine import (
    LEARNING_RATE,
    losses_of_steps,
    micro_batches,
    small_engine,
)
from benchmarks.support.host_waits import host_waits
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


def waits_of_a_step(task: Task) -> Result:
    """Return the number of waits of the host in one step after three, and their places."""
    small = small_engine(task)
    batches = micro_batches(small, 0)
    for _ in range(3):
        small.engine.train_batch(batches, LEARNING_RATE)
    with host_waits(small.engine.groups.device) as found:
        small.engine.train_batch(batches, LEARNING_RATE)
    return {"waits": len(found), "places": dict(Counter(map(str, found)).most_common())}
