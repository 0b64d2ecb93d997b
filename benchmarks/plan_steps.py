"""Steps of the 10B shape, predicted by the planner: those measured on an H100, and those to come.

    python benchmarks/plan_steps.py

The first table holds the rows that the planner's constants are fitted to, whose code has changed
since. The second holds what the present code is predicted to need, before anybody has measured it.
Takes a few seconds and no GPU.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.support import tables
from benchmarks.support.models import random_run, read_gpu, read_model
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.planning.memory import estimate_memory
from ernie_vilg.planning.step_time import StepTime, step_time
from ernie_vilg.planning.workload import (
    COPIED,
    COPIED_AT_ONCE,
    SUMMED,
    GradientTraffic,
    Workload,
    spread_of_layout,
    workload_of_model,
)

GPU = "h100-80gb"
MODEL = "ernie_vilg_10b"
NUM_LAYERS = 6
"""Number of layers of a step on one GPU."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the 10B shape in bfloat16, without recomputation."""

    name: str
    """Name of the row."""
    micro_batch: int
    """Pairs per pass."""
    passes: int
    """Passes per step."""
    compiled: bool = True
    """Whether torch.compile compiles the blocks."""
    gradients: GradientTraffic = SUMMED
    """Handling of gradients on their way into the sums."""
    fp8_blocks: int = 0
    """Number of blocks whose products are 8-bit."""
    num_layers: int = NUM_LAYERS
    """Number of layers."""
    num_gpus: int = 1
    """Number of GPUs."""
    tensor: int = 1
    """Number of tensor ranks; above 1 also of parts of the tokens."""
    pipeline: int = 1
    """Number of stages."""

    @property
    def run(self) -> PretrainConfig:
        """Settings of the run."""
        data = self.num_gpus // self.tensor // self.pipeline
        layout = ParallelismConfig(
            micro_batch_size=self.micro_batch,
            global_batch_size=self.micro_batch * self.passes * data,
            tensor_parallel_size=self.tensor,
            pipeline_parallel_size=self.pipeline,
            sequence_parallel=self.tensor > 1,
        )
        return random_run(read_model(MODEL, num_layers=self.num_layers), layout, precision="bf16")

    @property
    def predicted(self) -> StepTime:
        """Predicted seconds by part."""
        run = self.run
        workers = run.data.loader.num_workers
        spread = spread_of_layout(run.parallelism, self.num_gpus, workers)
        return step_time(self._workload, replace(spread, gradients=self.gradients), read_gpu(GPU))

    @property
    def predicted_mfu(self) -> float:
        """Operations of the model over the 16-bit peak, as a fraction."""
        return self.mfu_of(self.predicted.total)

    @property
    def predicted_gib(self) -> float:
        """Predicted GiB of the worst rank, without fragmentation."""
        memory = estimate_memory(self.run, self.num_gpus, torch.bfloat16, gradients=self.gradients)
        return max(stage.allocated for stage in memory) / 2**30

    def mfu_of(self, seconds: float) -> float:
        """Return the MFU of a step that takes some seconds."""
        pairs = self.run.parallelism.global_batch_size
        return self._workload.flops * pairs / seconds / self.num_gpus / read_gpu(GPU).peak_flops

    @property
    def _workload(self) -> Workload:
        workload = workload_of_model(self.run.model, fused=self.compiled)
        return replace(workload, fp8_share=self.fp8_blocks / self.num_layers)


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """A step that was measured on one H100 on 2026-11-28, at a5a332e."""

    step: Step
    """The step."""
    seconds: float
    """Measured seconds."""
    gib: float
    """Measured peak, GiB."""


def _row(seconds: float, gib: float, name: str, size: int, passes: int, code: GradientTraffic,
         *, compiled: bool = True) -> MeasuredStep:  # fmt: skip
    step = Step(name=name, micro_batch=size, passes=passes, gradients=code, compiled=compiled)
    return MeasuredStep(step=step, seconds=seconds, gib=gib)


MEASURED = [
    _row(0.581, 36.2, "4 x 4, compiled", 4, 4, COPIED),
    _row(0.623, 36.3, "4 x 4, eager", 4, 4, COPIED, compiled=False),
    _row(0.575, 33.7, "4 x 4, compiled, gradients taken at once", 4, 4, COPIED_AT_ONCE),
    _row(0.506, 43.6, "8 x 2, compiled", 8, 2, COPIED),
    _row(1.917, 40.8, "8 x 8, compiled, gradients taken at once", 8, 8, COPIED_AT_ONCE),
]
"""Measured steps; docs/planning.md describes their code."""

_WHOLE = {"num_layers": 48, "num_gpus": 64}
TO_COME = [
    Step(name="8 x 2, compiled", micro_batch=8, passes=2),
    Step(name="8 x 8, compiled", micro_batch=8, passes=8),
    Step(name="8 x 8, compiled, FP8 in 4 of 6 blocks", micro_batch=8, passes=8, fp8_blocks=4),
    Step(name="8 x 8, compiled, FP8 in all blocks", micro_batch=8, passes=8, fp8_blocks=6),
    Step(name="64 GPUs, tensor 2 x pipeline 1", micro_batch=4, passes=8, tensor=2, **_WHOLE),
    Step(name="64 GPUs, tensor 1 x pipeline 4", micro_batch=2, passes=32, pipeline=4, **_WHOLE),
    Step(
        name="64 GPUs, tensor 2 x pipeline 4", micro_batch=4, passes=32, tensor=2, pipeline=4,
        **_WHOLE,
    ),
]  # fmt: skip
"""Steps of the present code."""


def measured_table() -> list[str]:
    """Return the measured steps as a Markdown table."""
    names = ["micro-batch x passes", "predicted s", "measured s", "error", "predicted GiB",
             "measured GiB"]  # fmt: skip
    lines = [tables.header(names)]
    for row in MEASURED:
        seconds = row.step.predicted.total
        lines.append(
            tables.row(
                [
                    row.step.name,
                    f"{seconds:.3f}",
                    f"{row.seconds:.3f}",
                    f"{100 * (seconds / row.seconds - 1):+.1f} %",
                    f"{row.step.predicted_gib:.1f}",
                    f"{row.gib:.1f}",
                ]
            )
        )
    return lines


def table_to_come() -> list[str]:
    """Return the steps of the present code as a Markdown table."""
    lines = [tables.header(["step", "predicted s", "predicted MFU", "predicted GiB", "measured"])]
    for step in TO_COME:
        seconds, share = step.predicted.total, step.predicted_mfu
        cells = [f"{seconds:.3f}", f"{100 * share:.1f} %", f"{step.predicted_gib:.1f}", "to come"]
        lines.append(tables.row([step.name, *cells]))
    return lines


def main() -> None:
    """Print both tables."""
    print("\n".join([*measured_table(), "", *table_to_come()]))


if __name__ == "__main__":
    main()
