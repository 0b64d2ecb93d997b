"""Pinned host memory of the size that was asked for.

torch's allocator of pinned memory rounds every size up to a power of two, up to twice of it, and
does not say so. The copies of the ranks' states fill much of a machine's memory, so they take whole
pages of the operating system, which are pinned where they are.
"""

import math
import mmap
from typing import Any

import torch
from torch import Tensor


def pinned_bytes(num_bytes: int, runtime: Any = None) -> Tensor:
    """Return pinned memory, which is released with the last view of it.

    Args:
        num_bytes: bytes to hold, at least 1.
        runtime: CUDA's runtime; None: that of torch.

    Returns:
        uint8 [bytes], as many as its pages have.

    Raises:
        RuntimeError: CUDA cannot pin so much.
    """
    pages = _PinnedPages(
        -1,
        math.ceil(num_bytes / mmap.PAGESIZE) * mmap.PAGESIZE,
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
    )
    # The GPU writes to the pages themselves: a child must not make this process copy them.
    pages.madvise(mmap.MADV_DONTFORK)
    content = torch.frombuffer(pages, dtype=torch.uint8)
    pages.pin(content.data_ptr(), torch.cuda.cudart() if runtime is None else runtime)
    return content


class _PinnedPages(mmap.mmap):
    """Pages that are unpinned before they are given back."""

    _address: int | None = None

    def pin(self, address: int, runtime: Any) -> None:
        """Pin the pages, which begin at an address."""
        code = int(runtime.cudaHostRegister(address, len(self), 0))
        if code:
            raise RuntimeError(
                f"CUDA cannot pin {len(self):,} bytes of host memory (cudaHostRegister returns "
                f"{code}): the copy of the state for checkpoints needs them on every rank"
            )
        self._address, self._runtime = address, runtime

    def __del__(self) -> None:
        if self._address is not None:
            self._runtime.cudaHostUnregister(self._address)
