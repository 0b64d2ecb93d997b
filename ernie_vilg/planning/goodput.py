"""What stops and checkpoints leave of a run's time.

Source: Young 1974, Daly 2006, to first order.
"""

import math
from dataclasses import dataclass

from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.planning.workload import Workload

CHECKPOINT_BYTES = 14
"""Per parameter in a checkpoint: fp32 weight and two moments, 16-bit weight."""
_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Of a run with checkpoints every so many steps."""

    share: float
    """Of the time that goes into steps that stay."""
    stall_seconds: float
    """That one checkpoint holds training up."""
    write_seconds: float
    """Until a checkpoint is on storage."""
    hours_between_stops: float
    """Mean, of the whole job."""
    best_interval_steps: int
    """Steps between checkpoints that lose least."""


def goodput(
    config: PlanConfig, workload: Workload, seconds_per_step: float, num_gpus: int
) -> Goodput:
    """Predict what stops cost.

    Args:
        config: the run, its checkpoint interval and its failure rate.
        workload: the model.
        seconds_per_step: without stops.
        num_gpus: that it runs on.
    """
    machines = math.ceil(num_gpus / config.gpu.gpus_per_node)
    size = CHECKPOINT_BYTES * workload.num_parameters
    written = size / (machines * config.gpu.storage_bandwidth)
    copied = size / (num_gpus * config.gpu.host_bandwidth)
    stall = copied if config.checkpoint.asynchronous else written
    rate = config.failures_per_thousand_gpu_days * num_gpus / (1000 * _DAY)
    interval = config.checkpoint.every * seconds_per_step
    # A save that is under way when the job stops is lost with the steps before it.
    lost = interval / 2 + (written if config.checkpoint.asynchronous else 0.0)
    share = 1 - stall / (interval + stall) - rate * (lost + 60 * config.restart_minutes)
    best = math.sqrt(2 * stall / rate) if rate else math.inf
    steps = config.training.steps if math.isinf(best) else best / seconds_per_step
    return Goodput(
        share=max(share, 0.0),
        stall_seconds=stall,
        write_seconds=written,
        hours_between_stops=1 / rate / 3600 if rate else math.inf,
        best_interval_steps=max(1, min(round(steps), config.training.steps)),
    )
