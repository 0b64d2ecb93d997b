"""Measures the largest number of bytes that torch allocates on one rank during a few steps.

On a CPU torch's profiler records each allocation and release, from before the engine is built. It
misses releases by a thread of gloo, which holds the tensor that it sums slightly longer than the
caller of the sum does: `awaited_sums` makes the calling thread the last to release it. Any other
release that the profiler misses counts until its address is allocated again. On a GPU the value is
`max_memory_allocated`.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from benchmarks.plan_memory_parts.rows import row_named
from benchmarks.support.measurer import answer, tasks
from benchmarks.support.models import LEARNING_RATE, random_batch
from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.settings import machine_precision
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes
from launch.support.environment import read_launch

STEPS = 3
"""Number of steps: the first creates the optimizer's state, the second all buffers."""


def measure(launch: Launch, config: PretrainConfig) -> int:
    """Return the most bytes that this rank had allocated at any time; all ranks must call."""
    device = start_processes(launch, timeout_seconds=300)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)  # as training does
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    layout = config.parallelism
    groups = build_groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        train(config, groups)
        return torch.cuda.max_memory_allocated(device)
    with awaited_sums():
        return peak_of(lambda: train(config, groups))


def train(config: PretrainConfig, groups: Groups) -> None:
    """Build the engine and take steps, as `ernie_vilg.training` does."""
    engine = build_engine(config, groups, machine_precision(config.precision, groups.device))
    layout = config.parallelism
    count = layout.num_micro_batches(groups.world_size)
    for step in range(STEPS):
        seeds = range(step * count, (step + 1) * count)
        batches = [random_batch(config.model, layout.micro_batch_size, seed) for seed in seeds]
        engine.train_batch(batches, LEARNING_RATE)


class _Done:
    """Stand-in for the handle of a finished collective."""

    def wait(self) -> None:
        """Return at once."""


@contextlib.contextmanager
def awaited_sums() -> Iterator[None]:
    """Make `all_reduce` return only after gloo's thread has released its tensor."""
    theirs = dist.all_reduce

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> _Done | None:
        holders = tensor._use_count()  # type: ignore[attr-defined]
        work = theirs(tensor, *args, **kwargs)
        is_awaited_later = work is not None
        if is_awaited_later:
            work.wait()
            del work
        while tensor._use_count() > holders:  # type: ignore[attr-defined]
            time.sleep(0)  # gives the thread the processor
        return _Done() if is_awaited_later else None

    dist.all_reduce = all_reduce
    try:
        yield
    finally:
        dist.all_reduce = theirs


def peak_of(call: Callable[[], None]) -> int:
    """Return the most bytes that a call had allocated on the CPU at any time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.experimental_event_tree()
    allocations = sorted(_allocations(events), key=lambda event: event.start_time_ns)
    held: dict[int, int] = {}
    now = peak = 0
    for event in allocations:
        address, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        now -= held.pop(address, 0)  # released now, or a release that went unseen
        if size > 0:
            held[address] = size
            now += size
            peak = max(peak, now)
    return peak


def _allocations(events: Iterable[Any]) -> Iterator[Any]:
    pending = list(events)
    while pending:
        event = pending.pop()
        if event.tag == _EventType.Allocation:
            yield event
        pending.extend(event.children)


def main() -> None:
    """Answer tasks: each names a row."""
    torch.set_num_threads(1)
    for task in tasks():
        answer({"bytes": measure(read_launch(), row_named(task["row"]).config)})


if __name__ == "__main__":
    main()
