"""Metrics of steps: summed on the device, read once per log line."""

import importlib.util
import resource
import time
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor

from ernie_vilg.runs.phases import Phase, is_pause, pause_name
from ernie_vilg.runs.step_engine import StepEngine

Metrics = dict[str, Any]
"""Values by name: a float, or a list of floats along rows or slots, with None where nothing was
measured."""


class StepFigures(Protocol):
    """The figures of one kind of engine, by name."""

    @property
    def num_losses(self) -> int:
        """Length of the result of `StepEngine.train_batch`."""

    def losses(self, sums: Tensor, num_steps: int) -> Metrics:
        """Return the losses by name, among them `loss`.

        Args:
            sums: results of `StepEngine.train_batch` summed over steps, mean over replicas, float32
                [num_losses] on the CPU.
            num_steps: number of steps in the sums; with 0, losses are NaN.
        """

    def speed(self, samples_per_second: float, world_size: int) -> Metrics:
        """Return the speed of a run of so many ranks by name."""

    def line(self, step: int, steps: int, metrics: Metrics) -> str:
        """Return the log line of a step.

        Args:
            step: steps made.
            steps: steps of the whole run.
            metrics: all metrics of the step.
        """


@dataclass(kw_only=True)
class Meter:
    """Sums over the steps since the last log line.

    A step whose update was skipped is counted, but its losses are not: they do not describe the
    model. The first step after a start loads kernels and fills caches: its losses count, its time
    is reported apart and enters no speed, unless it is the only step of the line.
    """

    losses: Tensor
    """Results of `StepEngine.train_batch` summed over the steps that were not skipped, float32
    [num_losses] on the device; zeros at the start."""
    steps: int = 0
    """Steps since the last log line."""
    since: float = 0.0
    """`time.monotonic()` of the last log line."""
    first_step_seconds: float | None = None
    """Seconds of the first step after the start; None until it is made."""

    def __post_init__(self) -> None:
        self.since = time.monotonic()
        self._num_timed = self._samples_timed = self._first_samples = 0
        self._num_skipped = torch.zeros((), device=self.losses.device)

    def add(self, losses: Tensor, is_skipped: Tensor, num_samples: int) -> None:
        """Count one step; copies nothing to the host.

        Args:
            losses: result of `StepEngine.train_batch`, float32 [num_losses].
            is_skipped: `StepEngine.last_skip`, float32 [].
            num_samples: samples of the step over all replicas.
        """
        # Not a product: the losses of a skipped step may be NaN, and NaN * 0 is NaN.
        self.losses += torch.where(is_skipped > 0, 0.0, losses)
        self._num_skipped += is_skipped
        self.steps += 1
        self._num_timed += 1
        self._samples_timed += num_samples

    def end_first_step(self) -> None:
        """Time the first step, which was added; waits for the device once per start."""
        if self.losses.device.type == "cuda":
            torch.cuda.synchronize(self.losses.device)
        now = time.monotonic()
        self.first_step_seconds = now - self.since
        self.since, self._num_timed = now, 0
        self._first_samples, self._samples_timed = self._samples_timed, 0

    def reset(self) -> None:
        """Discard the steps since the last log line."""
        self.losses.zero_()
        self._num_skipped.zero_()
        self.steps, self._num_timed, self._samples_timed = 0, 0, 0
        self.since = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Exclude time that was not spent on steps."""
        self.since += seconds

    def read(self, engine: StepEngine, figures: StepFigures) -> Metrics:
        """Return the metrics of the steps since the last call, at least one, and start again.

        All ranks must call.

        Args:
            engine: the engine that took the steps.
            figures: names of its figures.
        """
        sums = engine.mean_losses(self.losses)
        num_skipped = int(self._num_skipped)
        # Without another step, the first one is all that is known of the speed.
        seconds = (time.monotonic() - self.since) if self._num_timed else self.first_step_seconds
        samples = self._samples_timed if self._num_timed else self._first_samples
        seconds = max(seconds or 0.0, 1e-9)
        seconds_per_step = seconds / max(self._num_timed, 1)
        metrics = figures.losses(sums, self.steps - num_skipped)
        metrics |= {
            "skipped_steps": float(num_skipped),
            "gradient_norm": engine.gradient_norm(),
            "seconds_per_step": seconds_per_step,
        }
        metrics |= figures.speed(samples / seconds, engine.groups.world_size)
        metrics |= memory_metrics(engine.groups.device)
        metrics |= utilization_metrics(engine.groups.device)
        self.reset()
        return metrics


def memory_metrics(device: torch.device) -> Metrics:
    """Return this rank's memory in bytes, now and at its peak.

    It is the allocated memory of a GPU, or the resident memory of a process on a CPU. On a GPU
    there are also the memory that torch has reserved, of which the allocated one is a part, and the
    process's resident memory.
    """
    resident = float(psutil.Process().memory_info().rss)
    if device.type == "cuda":
        return {
            "peak_memory_bytes": float(torch.cuda.max_memory_allocated(device)),
            "memory_bytes": float(torch.cuda.memory_allocated(device)),
            "peak_reserved_memory_bytes": float(torch.cuda.max_memory_reserved(device)),
            "reserved_memory_bytes": float(torch.cuda.memory_reserved(device)),
            "host_memory_bytes": resident,
        }
    # Linux counts KiB, and does not update the peak at once.
    peak = max(resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"peak_memory_bytes": float(peak), "memory_bytes": resident}


def utilization_metrics(device: torch.device) -> Metrics:
    """Return the fraction of the driver's last sample in which a GPU ran any kernel.

    It needs the package nvidia-ml-py, without which there is no such figure; the figure is null if
    the driver does not tell.
    """
    if device.type != "cuda" or importlib.util.find_spec("pynvml") is None:
        return {}
    from pynvml import NVMLError

    try:
        return {"gpu_utilization": torch.cuda.utilization(device) / 100}
    except NVMLError:
        return {"gpu_utilization": None}


def waits(metrics: Metrics) -> str:
    """Return in words what the leader waited for since the previous line; empty if for nothing.

    Shares of less than 1 % are left out, and what was not measured. `ranks` is the time in
    collectives, the wait for other ranks included.

    Args:
        metrics: those of a log line, with the parts of a step and the seconds of `Phases.read`.
    """
    whole = metrics.get("line_seconds")
    if not whole:
        return ""
    pauses = {f"{phase}": metrics.get(pause_name(phase), 0.0) for phase in Phase if is_pause(phase)}
    in_steps = max(0.0, 1 - sum(pauses.values()) / whole)
    parts = [value for name, value in metrics.items() if _is_part(name)]
    shares = {
        words: in_steps * metrics.get(f"{part}_seconds_per_step", 0.0) / max(sum(parts), 1e-9)
        for part, words in (("data", "data"), ("communication", "ranks"))
    }
    shares |= {words: seconds / whole for words, seconds in pauses.items()}
    shown = [f"{words} {share:.0%}" for words, share in shares.items() if share >= 0.01]
    return f"waits: {', '.join(shown)}  " if shown else ""


def _is_part(name: str) -> bool:
    return name.endswith("_seconds_per_step")
