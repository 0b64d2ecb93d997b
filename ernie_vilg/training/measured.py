"""The record of a run's memory and times, which the planner reads.

It is rewritten at every checkpoint. Its seconds are medians over the log lines. A line with no step
but the first of the start counts only while it is the only line: that step loads kernels and fills
caches.
"""

import statistics
from pathlib import Path

import torch

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.collectives import LEADER, gather_everywhere
from ernie_vilg.planning.history import RunRecord, deciding_settings, write_record
from ernie_vilg.runs.meter import Metrics, memory_metrics

PARTS = ("data", "forward", "backward", "optimizer", "communication", "other")
"""Parts of a step, by their names in `StepTimes`."""


class Measured:
    """Collects the times of log lines."""

    def __init__(self, config: PretrainConfig, engine: Engine) -> None:
        """Start without a log line.

        Args:
            config: the run.
            engine: the run's engine.
        """
        self._config = config
        self._groups = engine.groups
        self._precision = str(engine.settings.precision).removeprefix("torch.")
        self._lines: list[dict[str, float]] = []
        self._has_first_step_only = False

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of a log line."""
        if self._has_first_step_only:
            self._lines.clear()
        seconds = metrics["seconds_per_step"]
        self._has_first_step_only = metrics.get("first_step_seconds") == seconds
        names = {part: f"{part}_seconds_per_step" for part in PARTS} | {"": "seconds_per_step"}
        self._lines.append({part: metrics[name] for part, name in names.items() if name in metrics})

    def write(self) -> None:
        """Write the record after the first log line; all ranks must call."""
        device = self._groups.device
        peaks = gather_everywhere(memory_metrics(device)["peak_memory_bytes"])
        if self._groups.rank != LEADER or not self._lines:
            return
        seconds = {
            part: statistics.median(line[part] for line in self._lines if part in line)
            for part in ("", *PARTS)
            if any(part in line for line in self._lines)
        }
        record = RunRecord(
            hardware=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            world_size=self._groups.world_size,
            settings=deciding_settings(self._config, self._precision),
            peak_memory_bytes=int(max(peaks)),
            seconds_per_step=seconds.pop(""),
            parts=seconds,
        )
        write_record(Path(self._config.run_dir), record)
