"""Memory that a layer keeps for the backward pass and needs temporarily, found by running it.

A layer runs forward and backward on tensors without values, and every storage that an operation
returns counts until nothing references it. A storage either grows with the micro-batch or does not.
The traced micro-batch is a multiple of a large prime, which tells the two apart, so one trace
serves all sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MARKER = 10_007
"""A prime that divides no dimension of a model. The traced micro-batch is a multiple of it, so
storages whose number of values it divides grow with the micro-batch."""

Bytes = tuple[int, int]
"""Bytes that do not depend on the micro-batch, and bytes for the traced micro-batch."""


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """Bytes that one layer needs on the device besides its parameters and their gradients.

    Counting starts before the layer's forward pass.
    """

    kept: int
    """Bytes held after the forward pass, its result included."""
    forward_peak: int
    """Largest bytes during the forward pass."""
    backward_peak: int
    """Largest bytes during the backward pass, gradients of its result and input included."""


@dataclass(frozen=True, kw_only=True)
class LayerTrace:
    """`LayerMemory` for every micro-batch size."""

    size: int
    """Size of the traced micro-batch."""
    forward: Sequence[Bytes]
    """Bytes held after each operation of the forward pass."""
    backward: Sequence[Bytes]
    """Bytes held after each operation of the backward pass."""

    def at(self, micro_batch_size: int) -> LayerMemory:
        """Return the memory for a micro-batch of some size."""
        forward, backward = (
            [constant + growing * micro_batch_size // self.size for constant, growing in points]
            for points in (self.forward, self.backward)
        )
        return LayerMemory(kept=forward[-1], forward_peak=max(forward), backward_peak=max(backward))


class StorageMeter(TorchDispatchMode):
    """Counts the bytes that operations return, as long as anything references them."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Bytes] = []
        """Bytes held after each operation."""
        self._held: dict[int, tuple[StorageWeakRef, int, bool]] = {}
        self._given: set[int] = set()

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Do not count tensors that exist before the pass, nor their views."""
        self._given |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def note(self) -> None:
        """Append the bytes held now to the history."""
        constant = growing = 0
        for key, (storage, size, grows) in list(self._held.items()):
            if storage.expired():
                del self._held[key]
            elif grows:
                growing += size
            else:
                constant += size
        self.history.append((constant, growing))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it returns."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._given and key not in self._held:
                    grows = size // tensor.element_size() % MARKER == 0
                    self._held[key] = (StorageWeakRef(storage), size, grows)
        self.note()
        return result


class _Next(torch.autograd.Function):
    """Stand-in for the layers that follow: takes the result and returns its gradient."""

    @staticmethod
    def forward(context: Any, result: Tensor) -> Tensor:
        """Return a number."""
        context.shape = result.shape
        return result.new_empty(())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """Return a gradient of the result's shape."""
        return gradients[0].new_empty(context.shape)


def trace_layer(size: int, given: Sequence[Tensor], layer: Callable[[], Tensor]) -> LayerTrace:
    """Trace the memory of a layer.

    Args:
        size: size of the micro-batch, a multiple of `MARKER`.
        given: tensors that exist before the pass: inputs, and parameters with gradients, to which
            the pass adds its own.
        layer: runs the layer forward.
    """
    with StorageMeter() as meter:
        leaves = [each for each in given if each.is_leaf]
        meter.ignore([*given, *(each.grad for each in leaves if each.grad is not None)])
        result = layer()
        meter.note()
        forward, meter.history = meter.history, []
        end = _Next.apply(result) if result.dim() else result
        del result
        end.backward()
        del end
        meter.note()
    return LayerTrace(size=size, forward=forward, backward=meter.history)
