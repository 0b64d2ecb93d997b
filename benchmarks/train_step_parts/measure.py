"""Answers one task with the rows of a table of `benchmarks/train_step.py`."""

import torch

from benchmarks.support.measurer import answer, tasks
from benchmarks.train_step_parts.attention import measure_attention
from benchmarks.train_step_parts.device import machine, model_shape
from benchmarks.train_step_parts.step import measure_step


def main() -> None:
    """Answer tasks."""
    if machine() == "cpu":
        torch.set_num_threads(1)
    for task in tasks():
        if task["section"] == "attention":
            rows = measure_attention(model_shape(machine()), task["pairs"], task.get("only", ""))
        else:
            rows = measure_step(task)
        for row in rows:
            answer(row)


if __name__ == "__main__":
    main()
