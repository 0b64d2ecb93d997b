"""The prediction for one run with its own settings, for its dry run and its plan.json."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.planning.memory import MemoryEstimate, estimate_memory
from ernie_vilg.planning.plan import saving
from ernie_vilg.planning.step_time import StepTime, step_time
from ernie_vilg.planning.workload import spread_of_layout, workload_of_run


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Memory and speed of one run."""

    memory: Sequence[MemoryEstimate]
    """Peak memory of each pipeline stage."""
    step: StepTime | None
    """Seconds of one step by part; None if the kind of GPU is unknown."""
    excess: str | None
    """Sentence about memory that exceeds the GPU's, with the setting to change; None if all fits or
    the GPU is unknown."""


def forecast(config: PretrainConfig, world_size: int, precision: torch.dtype) -> Forecast:
    """Predict a run on GPUs.

    Args:
        config: settings of the run.
        world_size: number of ranks.
        precision: number format of weights and activations.

    Raises:
        InputError: the layout is not legal for so many ranks.
    """
    memory = estimate_memory(config, world_size, precision)
    if config.gpu is None:
        return Forecast(memory=memory, step=None, excess=None)
    readers = config.data.loader.num_workers
    step = step_time(
        workload_of_run(config),
        spread_of_layout(config.parallelism, world_size, readers),
        config.gpu,
    )
    most = max(stage.total for stage in memory)
    excess = None
    if most > config.gpu.memory_bytes:
        excess = (
            f"does not fit: {most / 1e9:.1f} GB of gpu.memory_bytes="
            f"{config.gpu.memory_bytes / 1e9:.1f} GB: {saving(config)}"
        )
    return Forecast(memory=memory, step=step, excess=excess)
