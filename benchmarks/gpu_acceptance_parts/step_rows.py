"""Rows of the training step: the 10B shape with 6 layers, and what the planner predicts for it."""

from benchmarks.support.measurer import Result, Task
from benchmarks.train_step_parts.step import measure_step, pretrain_config


def step_row(task: Task) -> Result:
    """Return a row's speed and peak memory, and the memory that the planner predicts.

    Args:
        task: `options` is a row of benchmarks/train_step.py.
    """
    import torch

    from benchmarks.train_step_parts.device import machine
    from ernie_vilg.planning.memory import estimate_memory

    options = task["options"]
    row: Result = {}
    for part in measure_step(options):
        row |= part
    (estimate,) = estimate_memory(
        pretrain_config(options), 1, getattr(torch, row["precision"]), machine()
    )
    return {**row, "predicted_bytes": estimate.allocated}
