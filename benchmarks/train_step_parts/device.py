"""The device that is measured: its clock, its memory, and the shape of model that it gets."""

import resource
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.support.models import read_model
from ernie_vilg.config.model import ModelConfig


def model_shape(device: str) -> ModelConfig:
    """Return the shape that is measured on a kind of device."""
    if device == "cuda":
        return read_model("ernie_vilg_10b")
    return read_model(
        "ernie_vilg_10b",
        num_layers=4,
        hidden_size=256,
        num_heads=4,
        image_grid_size=16,
        text_vocab_size=4096,
    )


def machine() -> str:
    """Return the kind of device of this machine: cuda or cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(device: str) -> None:
    """Wait for the device to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> int:
    """Restart the count of peak memory; return the bytes in use now."""
    if device != "cuda":
        return 0  # a process cannot reset its peak
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes(device: str) -> int:
    """Return the peak: allocated on a GPU, resident of the whole process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def median_seconds(run: Callable[[], None], repeats: int, runs: int, device: str) -> float:
    """Return the median time of one run over repeats; the device is awaited after each repeat."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    times = []
    for _ in range(repeats):
        started = clock()
        for _ in range(runs):
            run()
        wait(device)
        times.append((clock() - started) / runs)
    return statistics.median(times)
