"""A profile of one step: the kernels that take most of it, and a trace for a viewer."""

import gzip
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.support.measurer import Result
from benchmarks.train_step_parts.device import machine, wait

NUM_KERNELS = 30
_NAME_CHARACTERS = 90


def profile_step(step: Callable[[], None], trace: Path) -> list[Result]:
    """Take a step under torch's profiler and write its trace.

    Args:
        step: takes a step.
        trace: gzipped file for chrome://tracing or ui.perfetto.dev.

    Returns:
        the kernels, or operators on a CPU, that took most time themselves: name, milliseconds of
        the step, and calls.
    """
    device = machine()
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
        wait(device)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(trace, "wb") as target:
            shutil.copyfileobj(source, target)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
    return [
        {
            "name": event.key[:_NAME_CHARACTERS],
            "ms": round(getattr(event, key) / 1000, 3),  # from microseconds
            "calls": event.count,
        }
        for event in events[:NUM_KERNELS]
        if getattr(event, key) > 0
    ]
