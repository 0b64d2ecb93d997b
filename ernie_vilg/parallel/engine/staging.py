"""Moves a step's tensors to the GPU in one copy, for which the host does not wait.

A GPU copies from pinned host memory while host and GPU go on. So the tensors of all micro-batches
are packed into one pinned buffer, which is copied into one buffer on the device; the micro-batches
are views of that one. There are two host buffers: the step after the next one writes into the first
again, once its copy is done, which by then it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ernie_vilg.model.loss import Targets

MicroBatch = tuple[tuple[Tensor, ...], Targets]
"""Inputs of the first layer, and targets of the loss."""

_ALIGNMENT = 256
"""Bytes to whose multiples each tensor's place is rounded up, as the GPU's allocator does."""


@dataclass(kw_only=True)
class _HostBuffer:
    content: Tensor
    """Bytes, pinned for a GPU."""
    is_copied: Any
    """Event behind the last copy from the buffer."""


class Staging:
    """Two pinned buffers, and the way through them to one device."""

    def __init__(
        self, device: torch.device, make_event: Callable[[], Any] = torch.cuda.Event
    ) -> None:
        """Allocate nothing yet.

        Args:
            device: destination.
            make_event: makes an event of the destination's streams.
        """
        self._device = device
        self._buffers = [
            _HostBuffer(content=self._allocated(0), is_copied=make_event()) for _ in range(2)
        ]

    def move(self, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """Return the micro-batches on the device, where they stand in the current stream's order.

        Args:
            micro_batches: tensors on the CPU; one that is in several places is moved once.
        """
        tensors = {id(each): each for pair in micro_batches for part in pair for each in part}
        moved = dict(zip(tensors, self._move(list(tensors.values())), strict=True))
        return [
            (tuple(moved[id(each)] for each in inputs), tuple(moved[id(each)] for each in targets))
            for inputs, targets in micro_batches
        ]

    def _move(self, tensors: list[Tensor]) -> list[Tensor]:
        if not tensors:  # of a stage in the middle
            return []
        sizes = [math.ceil(each.nbytes / _ALIGNMENT) * _ALIGNMENT for each in tensors]
        buffer = self._next_buffer(sum(sizes))
        host = buffer.content[: sum(sizes)]
        for place, tensor in zip(host.split(sizes), tensors, strict=True):
            _as(place, tensor).copy_(tensor)
        device = torch.empty(len(host), dtype=torch.uint8, device=self._device)
        device.copy_(host, non_blocking=True)
        buffer.is_copied.record()
        return [_as(place, each) for place, each in zip(device.split(sizes), tensors, strict=True)]

    def _next_buffer(self, num_bytes: int) -> _HostBuffer:
        """Return the buffer that was not used last, of a sufficient size; nothing reads it."""
        self._buffers.reverse()
        buffer = self._buffers[0]
        if not buffer.is_copied.query():
            buffer.is_copied.synchronize()
        if len(buffer.content) < num_bytes:
            buffer.content = self._allocated(num_bytes)
        return buffer

    def _allocated(self, num_bytes: int) -> Tensor:
        is_pinned = self._device.type == "cuda"
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)


def _as(place: Tensor, tensor: Tensor) -> Tensor:
    """Return the first bytes of a place as a tensor of the same type and shape."""
    return place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
