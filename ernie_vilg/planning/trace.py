"""What layers keep for the backward pass, and what they need on top, found by running them.

A layer runs forward and backward on tensors without values, while every storage that an operation
returns is counted until nothing holds it. Storages either grow with the micro-batch or do not; one
run at a size that is a multiple of a large prime tells which, so all sizes follow from it.

Source: ours.
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
"""A prime that no dimension of a model is a multiple of: storages whose number of values is, grow
with the micro-batch, which is traced at a multiple of it."""

Bytes = tuple[int, int]
"""Those that are always needed, and those per traced micro-batch."""


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """What one layer needs of the device besides its parameters and their gradients, in bytes.

    All of it counts from before the layer's forward pass.
    """

    kept: int
    """After the forward pass, its result included."""
    forward_peak: int
    """At most during the forward pass."""
    backward_peak: int
    """At most during the backward pass, the gradients of its result and input included."""


@dataclass(frozen=True, kw_only=True)
class LayerTrace:
    """`LayerMemory` for every micro-batch size."""

    size: int
    """Micro-batch that was run."""
    forward: Sequence[Bytes]
    """After each operation."""
    backward: Sequence[Bytes]
    """After each operation."""

    def at(self, micro_batch_size: int) -> LayerMemory:
        """Return what a micro-batch of some size needs."""
        forward, backward = (
            [constant + growing * micro_batch_size // self.size for constant, growing in points]
            for points in (self.forward, self.backward)
        )
        return LayerMemory(kept=forward[-1], forward_peak=max(forward), backward_peak=max(backward))


class StorageMeter(TorchDispatchMode):
    """Counts the bytes that operations return, for as long as anything holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Bytes] = []
        """Bytes held after each operation."""
        self._held: dict[int, tuple[StorageWeakRef, int, bool]] = {}
        self._given: set[int] = set()

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Leave out what is there anyway, and all views of it."""
        self._given |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def note(self) -> None:
        """Write down what is held now."""
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
    """Stands for all that follows a layer: takes its result, and hands back its gradient."""

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
    """Return what a layer needs.

    Args:
        size: micro-batch that it runs, a multiple of `MARKER`.
        given: tensors that are there anyway: parameters, to whose gradients those of this pass are
            added, and inputs.
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
