"""A trace of some steps: every operation, and on a GPU every kernel and allocation.

The trace is Chrome's JSON, compressed, for https://ui.perfetto.dev or TensorBoard. Each step is a
range `ProfilerStep#<step>`. The snapshot of the memory is a pickle of torch's, for
https://pytorch.org/memory_viz; no program of ours reads it.

Source: torch.profiler and torch.cuda.memory (https://docs.pytorch.org/docs/stable/profiler.html).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ernie_vilg.config.profile import ProfileConfig
from ernie_vilg.parallel.layout.collectives import LEADER
from ernie_vilg.parallel.layout.groups import Groups
from ernie_vilg.runs.phases import Phase
from ernie_vilg.runs.run_folder import RunFolder

_MOST_ALLOCATIONS = 200_000
"""Number of the last allocations and releases that a snapshot has with their stacks."""

logger = logging.getLogger(__name__)


class StepProfile:
    """The callback that traces the steps of the settings, once per start."""

    every = 0  # it has no work between steps
    phase = Phase.STEP

    def __init__(self, config: ProfileConfig, run_dir: Path) -> None:
        self._config, self._folder = config, RunFolder(run_dir)
        self._profiler: profile | None = None
        self._groups: Groups | None = None
        self._traced: list[int] = []
        self._is_over = not config.steps

    @contextmanager
    def around(self, engine: Any, step: int) -> Iterator[None]:
        """Trace the step made within, if it is one of the chosen."""
        if self._is_over or not self._config.steps[0] <= step <= self._config.steps[1]:
            yield
            return
        if engine.groups.rank not in self._config.ranks:
            yield
            return
        if self._profiler is None:
            self._start(engine.groups)
        self._traced.append(step)
        with record_function(f"ProfilerStep#{step}"):
            yield
        if step == self._config.steps[1]:
            self.close()

    def run(self, boundary: Any) -> None:
        """Do nothing between steps."""

    def close(self) -> None:
        """Write the trace of the steps so far, if it has begun; a full disk is a warning."""
        profiler, groups, self._profiler = self._profiler, self._groups, None
        if profiler is None or groups is None:
            return
        self._is_over = True
        is_on_gpu = groups.device.type == "cuda"
        if is_on_gpu:
            torch.cuda.synchronize(groups.device)
        profiler.stop()
        steps = self._traced[0], self._traced[-1]
        path = self._folder.profile(*steps, groups.rank)
        memory = self._folder.profile_of_memory(*steps, groups.rank) if is_on_gpu else None
        try:
            path.parent.mkdir(exist_ok=True)
            _export(profiler, path)
            if memory is not None:
                torch.cuda.memory._dump_snapshot(str(memory))
        except OSError as error:
            logger.warning("the profile of steps %s is lost: %s", self._traced, error)
        else:
            # Ranks other than the leader log warnings only, and each says where its file is.
            level = logging.INFO if groups.rank == LEADER else logging.WARNING
            logger.log(level, "%s", _where(len(self._traced), groups.rank, path, memory))
        finally:
            if is_on_gpu:
                torch.cuda.memory._record_memory_history(enabled=None)

    def _start(self, groups: Groups) -> None:
        self._groups = groups
        activities = [ProfilerActivity.CPU]
        if groups.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_MOST_ALLOCATIONS)
        self._profiler = profile(activities=activities, record_shapes=True)
        self._profiler.start()


def _export(profiler: profile, path: Path) -> None:
    """Write a trace whole, or not at all."""
    with TemporaryDirectory(dir=path.parent, prefix=".profile-") as folder:
        unfinished = Path(folder) / path.name  # its ending makes torch compress it
        profiler.export_chrome_trace(str(unfinished))
        os.replace(unfinished, path)


def _where(num_steps: int, rank: int, path: Path, memory: Path | None) -> str:
    """Return where the files of a profile lie, and what shows them."""
    of_memory = f", and {memory} for https://pytorch.org/memory_viz" if memory else ""
    return (
        f"rank {rank}: the profile of {num_steps} step(s) is {path}, for "
        f"https://ui.perfetto.dev{of_memory}"
    )
