"""Layouts of a run, fastest first, with the memory, time and money that each takes.

Step times are cheap arithmetic, while memory is traced and slow. So all legal layouts are timed
first, and their memory is estimated in order of speed until enough of them fit.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.model.flops import training_flops_per_pair
from ernie_vilg.model.parameter_groups import group_sizes
from ernie_vilg.planning.calibration import Correction
from ernie_vilg.planning.goodput import Goodput, goodput, run_pairs
from ernie_vilg.planning.layouts import Refusal, candidate_layouts, refusal_of, with_layout
from ernie_vilg.planning.memory import MemoryEstimate, estimate_memory
from ernie_vilg.planning.step_time import StepTime, step_time
from ernie_vilg.planning.workload import (
    Workload,
    can_compile,
    spread_of_layout,
    workload_of_run,
)

_NO_MEMORY = "does not fit the GPU's memory"
_NO_HOST_MEMORY = "does not fit the host's memory"


@dataclass(frozen=True, kw_only=True)
class PlannedLayout:
    """One layout and the predictions for it."""

    run: PretrainConfig
    """Settings of the run with this layout."""
    num_gpus: int
    """Number of GPUs that it uses."""
    step: StepTime
    """Seconds of one step by part."""
    goodput: Goodput
    """Time lost to stops and checkpoints."""
    memory: MemoryEstimate
    """Peak memory of the stage that needs most."""
    tokens_per_second: float
    """Tokens per second of all GPUs, including stops and checkpoints."""
    flops_utilization: float
    """MFU: model operations over the peak, without stops and checkpoints."""
    hours: float
    """Hours of the whole run."""
    dollars: float
    """Cost of the whole run."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The layouts for one number of GPUs."""

    best: tuple[PlannedLayout, ...]
    """Layouts that fit, most tokens per second first."""
    refused: tuple[Refusal, ...]
    """Layouts that are illegal, or faster than the best but too large."""
    num_legal: int
    """Number of layouts that are legal by themselves, whether they fit or not."""

    @property
    def reasons(self) -> list[tuple[str, int, str]]:
        """Reasons of refusal with their counts, and an example of each with its fix."""
        counts = Counter(refusal.reason for refusal in self.refused)
        first: dict[str, str] = {}
        for refusal in self.refused:
            first.setdefault(refusal.reason, refusal.fix)
        return [(reason, count, first[reason]) for reason, count in counts.most_common()]


def plan(
    config: PlanConfig,
    correction: Correction,
    *,
    num_gpus: int | None = None,
    top: int | None = None,
) -> Plan:
    """Find the best layouts.

    Args:
        config: the run and the GPUs.
        correction: factors learned from past runs.
        num_gpus: number of GPUs, instead of the one in `config`.
        top: number of layouts to find, instead of the one in `config`.

    Raises:
        InputError: a pattern of the optimizer's groups matches no parameter.
    """
    group_sizes(config.model, config.optimizer)
    gpus = num_gpus or config.num_gpus
    legal, refused = candidate_layouts(config, config.gpu, gpus)
    timed = [
        (_timing(step, gpus, workload, config), layout)
        for layout, workload, step in timed_layouts(config, config.gpu, legal, gpus, correction)
    ]
    timed.sort(key=lambda pair: pair[0][0])
    best: list[PlannedLayout] = []
    for timing, layout in timed:
        if len(best) == (top or config.top):
            break
        found = _examined(layout, gpus, config, correction)
        if isinstance(found, Refusal):
            refused.append(found)
        else:
            best.append(_planned(*found, gpus, timing, config))
    return Plan(best=tuple(best), refused=tuple(refused), num_legal=len(legal))


def timed_layouts(
    config: PretrainConfig,
    gpu: GpuConfig,
    layouts: Sequence[ParallelismConfig],
    num_gpus: int,
    correction: Correction,
) -> Iterator[tuple[ParallelismConfig, Workload, StepTime]]:
    """Yield each layout with the workload and the predicted step of the run with it."""
    workloads = {
        compiled: workload_of_run(replace(config, compile_blocks=compiled))
        for compiled in {False, config.compile_blocks}
    }
    for layout in layouts:
        workload = workloads[config.compile_blocks and can_compile(layout)]
        spread = spread_of_layout(layout, num_gpus, config.data.loader.num_workers)
        yield layout, workload, step_time(workload, spread, gpu, correction.efficiencies)


def planned_precision(setting: str, gpu: GpuConfig) -> torch.dtype:
    """Return the number format that `PretrainConfig.precision` selects on a kind of GPU."""
    half = torch.bfloat16 if gpu.bfloat16 and setting != "fp16" else torch.float16
    return torch.float32 if setting == "fp32" else half


def worst_memory(
    run: PretrainConfig, num_gpus: int, precision: torch.dtype, correction: Correction
) -> MemoryEstimate:
    """Return the memory of the stage that needs most."""
    stages = estimate_memory(run, num_gpus, precision)
    return correction.memory_of(max(stages, key=lambda stage: stage.total))


def smallest_number(config: PlanConfig, correction: Correction, limit: int = 4096) -> int | None:
    """Return the smallest number of GPUs above the plan's that some layout fits.

    The search tries every number within a machine, then whole machines. It doubles the number until
    a layout fits, then tries the numbers between the last two one by one. Returns None if it
    exceeds `limit`.
    """
    gpus = config.num_gpus
    while not fits(config, correction, gpus):
        gpus *= 2
        if gpus > limit:
            return None
    step = config.gpu.gpus_per_node if gpus > config.gpu.gpus_per_node else 1
    first = max(config.num_gpus, gpus // 2) // step * step + step
    candidates = range(first, gpus, step)
    return next((fewer for fewer in candidates if fits(config, correction, fewer)), gpus)


def fits(config: PlanConfig, correction: Correction, num_gpus: int) -> bool:
    """Return whether some layout fits a number of GPUs.

    It tries the layouts that need least memory: micro-batches of one pair, full recomputation.
    """
    legal, _ = candidate_layouts(config, config.gpu, num_gpus)
    smallest = (
        layout
        for layout in legal
        if layout.micro_batch_size == 1 and layout.activation_checkpointing == "full"
    )
    examined = (_examined(layout, num_gpus, config, correction) for layout in smallest)
    return any(not isinstance(found, Refusal) for found in examined)


def _examined(
    layout: ParallelismConfig, num_gpus: int, config: PlanConfig, correction: Correction
) -> tuple[PretrainConfig, MemoryEstimate] | Refusal:
    """Return the run with a layout and its memory, or the refusal."""
    try:
        run = with_layout(config, layout)
    except InputError as error:
        return refusal_of(layout.describe(num_gpus), error)
    precision = planned_precision(config.precision, config.gpu)
    memory = worst_memory(run, num_gpus, precision, correction)
    return _refusal(run, num_gpus, memory, config) or (run, memory)


def _timing(
    step: StepTime, num_gpus: int, workload: Workload, config: PlanConfig
) -> tuple[float, StepTime, Goodput]:
    """Return the seconds per step including stops, by which layouts are ranked, and its parts."""
    kept = goodput(config, workload, step.total, num_gpus)
    return step.total / kept.share if kept.share else float("inf"), step, kept


def _planned(
    run: PretrainConfig,
    memory: MemoryEstimate,
    num_gpus: int,
    timing: tuple[float, StepTime, Goodput],
    config: PlanConfig,
) -> PlannedLayout:
    seconds, step, kept = timing
    batch = run.parallelism.global_batch_size
    hours = run_pairs(config) / batch * seconds / 3600
    flops = training_flops_per_pair(config.model) * batch / step.total
    return PlannedLayout(
        run=run,
        num_gpus=num_gpus,
        step=step,
        goodput=kept,
        memory=memory,
        tokens_per_second=2 * config.model.seq_length * batch / seconds,
        flops_utilization=flops / (num_gpus * config.gpu.peak_flops),
        hours=hours,
        dollars=hours * num_gpus * config.gpu.dollars_per_hour,
    )


def _refusal(
    run: PretrainConfig, num_gpus: int, memory: MemoryEstimate, config: PlanConfig
) -> Refusal | None:
    layout = run.parallelism.describe(num_gpus)
    size = run.parallelism.micro_batch_size
    room = config.gpu.memory_bytes * (1 - config.memory_margin)
    if memory.total > room:
        given = f"{memory.total / 1e9:.0f} GB of {room / 1e9:.0f}"
        return Refusal(
            layout=layout,
            reason=_NO_MEMORY,
            fix=f"{layout}, micro-batch {size}: {given}: {saving(run)}",
        )
    per_machine = memory.host * min(num_gpus, config.gpu.gpus_per_node)
    if per_machine > config.gpu.host_memory_bytes:
        given = f"{per_machine / 1e9:.0f} GB of {config.gpu.host_memory_bytes / 1e9:.0f}"
        fix = f"{layout}: {given} per machine: set parallelism.offload_optimizer=false"
        return Refusal(layout=layout, reason=_NO_HOST_MEMORY, fix=fix)
    return None


def saving(run: PretrainConfig) -> str:
    """Return the setting to change first in a run that does not fit its GPUs."""
    layout = run.parallelism
    if layout.tensor_parallel_size > 1 and not layout.sequence_parallel:
        return "set parallelism.sequence_parallel=true"
    if layout.activation_checkpointing == "none":
        return "set parallelism.activation_checkpointing=selective"
    if layout.micro_batch_size > 1:
        return f"set parallelism.micro_batch_size={layout.micro_batch_size // 2}"
    if layout.activation_checkpointing == "selective":
        return "set parallelism.activation_checkpointing=full"
    return "raise parallelism.tensor_parallel_size, or the number of GPUs"
