"""A step's tensors reach the device in one copy, and stay what they were."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.support.host_waits import host_waits
from ernie_vilg.parallel.engine.staging import MicroBatch, Staging

CPU = torch.device("cpu")


@dataclass
class FakeEvent:
    """Stands for a CUDA event behind a copy that is done when somebody has waited for it."""

    log: list[str]
    is_pending: bool = False

    def record(self) -> None:
        self.is_pending = True
        self.log.append("record")

    def query(self) -> bool:
        return not self.is_pending

    def synchronize(self) -> None:
        self.is_pending = False
        self.log.append("synchronize")


class Copies(TorchDispatchMode):
    """Counts asynchronous copies."""

    asynchronous = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.copy_.default and len(args) > 2 and args[2]:
            self.asynchronous += 1
        return func(*args, **(kwargs or {}))


def step_of(first: int, pairs: int = 2) -> list[MicroBatch]:
    """Return two micro-batches with pixels, whose values differ."""
    micro_batches = []
    mean = torch.tensor([first + 0.5])
    for number in range(first, first + 2):
        text = torch.full((pairs, 3), number)
        codes = torch.full((pairs, 5), 10 + number)
        pixels = torch.full((pairs, 3, 2, 2), number, dtype=torch.uint8)
        micro_batches.append(((text, codes), (text, codes, mean, pixels)))
    return micro_batches


def flat(micro_batches: list[MicroBatch]) -> list[Tensor]:
    return [each for pair in micro_batches for part in pair for each in part]


def assert_equal(found: list[MicroBatch], expected: list[MicroBatch]) -> None:
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.equal(other)


def test_one_copy_moves_a_step_and_a_shared_tensor_once() -> None:
    staging = Staging(CPU, make_event=lambda: FakeEvent([]))

    with Copies() as copies:
        moved = staging.move(step_of(1))

    assert copies.asynchronous == 1
    assert_equal(moved, step_of(1))
    (text, codes), targets = moved[0]
    assert targets[0] is text
    assert targets[1] is codes
    assert targets[2] is moved[1][1][2]
    assert len({each.untyped_storage().data_ptr() for each in flat(moved)}) == 1


def test_a_buffer_is_written_again_only_after_its_copy() -> None:
    """Step 3 uses the buffer of step 1, step 4 that of step 2."""
    log: list[str] = []
    staging = Staging(CPU, make_event=lambda: FakeEvent(log))

    moved = [staging.move(step_of(step)) for step in (1, 3, 5, 7)]

    assert log == ["record", "record", "synchronize", "record", "synchronize", "record"]
    for step, found in zip((1, 3, 5, 7), moved, strict=True):
        assert_equal(found, step_of(step))


def test_a_copy_that_is_done_is_not_waited_for() -> None:
    log: list[str] = []
    staging = Staging(CPU, make_event=lambda: FakeEvent(log))

    for step in range(4):
        staging.move(step_of(step))
        for buffer in staging._buffers:
            buffer.is_copied.is_pending = False

    assert log == ["record"] * 4


def test_steps_may_differ_in_size() -> None:
    staging = Staging(CPU, make_event=lambda: FakeEvent([]))

    for step, pairs in enumerate((1, 700, 2, 1000, 3)):
        assert_equal(staging.move(step_of(step, pairs)), step_of(step, pairs))


def test_what_no_stage_uses_is_not_moved() -> None:
    staging = Staging(CPU, make_event=lambda: FakeEvent([]))

    with Copies() as copies:
        assert staging.move([((), ()), ((), ())]) == [((), ()), ((), ())]

    assert copies.asynchronous == 0


@pytest.mark.gpu
def test_a_gpu_gets_the_step_while_the_host_goes_on() -> None:
    device = torch.device("cuda", 0)
    staging = Staging(device)
    staging.move(step_of(0))  # allocates the first buffer

    with host_waits(device) as waits:
        moved = [staging.move(step_of(step, pairs=64)) for step in range(1, 6)]

    assert staging._buffers[0].content.is_pinned()
    assert [str(wait) for wait in waits if "event" not in wait.kind] == []
    for step, found in enumerate(moved, start=1):
        assert all(each.device == device for each in flat(found))
        on_host = [
            (tuple(each.cpu() for each in inputs), tuple(each.cpu() for each in targets))
            for inputs, targets in found
        ]
        assert_equal(on_host, step_of(step, pairs=64))
