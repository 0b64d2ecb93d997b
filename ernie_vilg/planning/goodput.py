"""The fraction of a run's time that stops and checkpoints leave for training.

Source: Young 1974, Daly 2006, to first order.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.planning.workload import Workload

CHECKPOINT_BYTES = 14
"""Bytes per parameter in a checkpoint: fp32 weight and two moments, 16-bit weight."""
_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Time that a run with its checkpoint interval spends and loses."""

    share: float
    """Fraction of time spent on steps that are not lost to a restart."""
    stall_seconds: float
    """Seconds that one checkpoint blocks training."""
    write_seconds: float
    """Seconds until a checkpoint is on storage."""
    hours_between_stops: float
    """Mean hours between stops of the whole job."""
    best_interval_steps: int
    """Steps between checkpoints that lose least."""


def run_pairs(config: PlanConfig) -> int:
    """Return the number of pairs that the whole run trains on."""
    return config.num_pairs or first_position(config.training.steps + 1, config.batch_sizes)


def run_steps(config: PlanConfig) -> int:
    """Return the number of optimizer steps that they take."""
    pairs = run_pairs(config)
    return bisect_left(
        range(pairs), pairs, key=lambda steps: first_position(steps + 1, config.batch_sizes)
    )


def goodput(
    config: PlanConfig, workload: Workload, seconds_per_step: float, num_gpus: int
) -> Goodput:
    """Predict the time lost to stops and checkpoints.

    Args:
        config: the run, its checkpoint interval and its failure rate.
        workload: workload of the model.
        seconds_per_step: seconds of a step without stops.
        num_gpus: number of GPUs.
    """
    machines = math.ceil(num_gpus / config.gpu.gpus_per_node)
    size = CHECKPOINT_BYTES * workload.num_parameters
    written = size / (machines * config.gpu.storage_bandwidth)
    copied = size / (num_gpus * config.gpu.host_bandwidth)
    stall = copied if config.checkpoint.asynchronous else written
    rate = config.failures_per_thousand_gpu_days * num_gpus / (1000 * _DAY)
    interval = config.checkpoint.every * seconds_per_step
    # A stop also loses the save in progress, and the steps before it.
    lost = interval / 2 + (written if config.checkpoint.asynchronous else 0.0)
    share = 1 - stall / (interval + stall) - rate * (lost + 60 * config.restart_minutes)
    best = math.sqrt(2 * stall / rate) if rate else math.inf
    steps = run_steps(config) if math.isinf(best) else best / seconds_per_step
    return Goodput(
        share=max(share, 0.0),
        stall_seconds=stall,
        write_seconds=written,
        hours_between_stops=1 / rate / 3600 if rate else math.inf,
        best_interval_steps=max(1, min(round(steps), run_steps(config))),
    )
