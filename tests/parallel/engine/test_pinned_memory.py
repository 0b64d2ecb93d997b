"""Pinned memory has the size that is reported, and is unpinned before it is given back."""

import mmap
from pathlib import Path

import pytest
import torch

from ernie_vilg.parallel.engine.pinned_memory import pinned_bytes

PAGE = mmap.PAGESIZE


class FakeRuntime:
    """Stands for CUDA's runtime, and looks whether pages that it unpins are still there."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.pinned: dict[int, int] = {}
        self.was_mapped: list[bool] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        assert address % PAGE == size % PAGE == flags == 0
        self.pinned[address] = size
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        size = self.pinned.pop(address)
        self.was_mapped.append(is_mapped(address, size))
        return 0


def is_mapped(address: int, size: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines]
    return any(int(low, 16) <= address and address + size <= int(high, 16) for low, high in ranges)


@pytest.mark.parametrize(("asked", "held"), [(1, PAGE), (PAGE, PAGE), (5 * PAGE + 1, 6 * PAGE)])
def test_whole_pages_are_pinned_and_no_more(asked: int, held: int) -> None:
    runtime = FakeRuntime()

    memory = pinned_bytes(asked, runtime)

    assert len(memory) == memory.untyped_storage().nbytes() == held
    assert runtime.pinned == {memory.data_ptr(): held}
    assert memory.fill_(7).sum() == 7 * held


def test_the_last_view_unpins_pages_that_are_still_mapped() -> None:
    runtime = FakeRuntime()
    memory = pinned_bytes(PAGE, runtime)

    view = memory[:8].view(torch.float32)
    del memory
    assert len(runtime.pinned) == 1
    del view

    assert not runtime.pinned
    assert runtime.was_mapped == [True]


def test_memory_that_cannot_be_pinned_is_refused() -> None:
    with pytest.raises(RuntimeError, match=f"cannot pin {PAGE:,} bytes of host memory"):
        pinned_bytes(1, FakeRuntime(code=2))


@pytest.mark.gpu
def test_a_gpu_copies_into_it_while_the_host_goes_on() -> None:
    values = torch.arange(1 << 20, device="cuda")
    torch.cuda.synchronize()

    for _ in range(100):  # more than the machine has, if nothing is unpinned
        memory = pinned_bytes(values.nbytes + (1 << 28))
        assert memory.is_pinned()
    torch.cuda._sleep(1 << 28)
    copied = memory[: values.nbytes].view(torch.int64).copy_(values, non_blocking=True)
    is_behind = not torch.cuda.current_stream().query()
    torch.cuda.synchronize()

    assert is_behind
    assert copied.equal(values.cpu())
