"""Trains a few steps on one rank and finds the most that torch had allocated.

On a CPU torch's profiler writes down each allocation and release, from before the engine is built.
It sees no release by a thread of gloo, which holds what it sums a moment longer than who asked for
the sum: `awaited_sums` makes the asking thread the last to let go. What is released unseen all the
same counts until its address is given out again. On a GPU it is `max_memory_allocated`.

Source: ours.
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

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.precision import machine_precision
from ernie_vilg.parallel.layout.groups import Groups, build_groups, start_processes

STEPS = 3
"""After the first, the optimizer's state is there; after the second, all buffers."""


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
    for step in range(STEPS):
        engine.train_batch(list(micro_batches(config, groups, step)), learning_rate=1e-4)


def micro_batches(config: PretrainConfig, groups: Groups, step: int) -> Iterator[Batch]:
    """Yield this replica's share of a step, of random tokens."""
    model, layout = config.model, config.parallelism
    generator = torch.Generator().manual_seed(step)
    size = layout.micro_batch_size
    for _ in range(layout.num_micro_batches(groups.world_size)):
        yield Batch(
            text=torch.randint(
                4, model.text_vocab_size, (size, model.text_length), generator=generator
            ),
            codes=torch.randint(
                0, model.codebook_size, (size, model.num_image_tokens), generator=generator
            ),
        )


class _Done:
    """Stands for a message that has arrived."""

    def wait(self) -> None:
        """Return at once."""


@contextlib.contextmanager
def awaited_sums() -> Iterator[None]:
    """Let `all_reduce` return only when gloo's thread holds its tensor no longer."""
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
        now -= held.pop(address, 0)  # released now, or unseen before
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
