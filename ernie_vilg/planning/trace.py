"""What layers keep for the backward pass, and what they need on top, found by running them.

A layer runs forward and backward on tensors without values, while every storage that an operation
returns is counted until nothing holds it. That is done for two micro-batch sizes; at every
operation memory is affine in the size, so all other sizes follow without running again.

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

TRACED_SIZES = (2, 3)
"""Micro-batches that are run. One alone would take short cuts: dimensions of 1 need no copies."""


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

    sizes: tuple[int, int]
    """That were run."""
    forward: tuple[Sequence[int], Sequence[int]]
    """Bytes after each operation, for both sizes."""
    backward: tuple[Sequence[int], Sequence[int]]
    """Bytes after each operation, for both sizes."""

    def at(self, micro_batch_size: int) -> LayerMemory:
        """Return what a micro-batch of some size needs."""
        forward, backward = (
            [self._at(one, other, micro_batch_size) for one, other in zip(*values, strict=True)]
            for values in (self.forward, self.backward)
        )
        return LayerMemory(kept=forward[-1], forward_peak=max(forward), backward_peak=max(backward))

    def _at(self, one: int, other: int, size: int) -> int:
        first, second = self.sizes
        return one + (other - one) * (size - first) // (second - first)


class StorageMeter(TorchDispatchMode):
    """Counts the bytes that operations return, for as long as anything holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[int] = []
        """Bytes held after each operation."""
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: set[int] = set()

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Leave out what is there anyway, and all views of it."""
        self._given |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def now(self) -> int:
        """Return the bytes that are held."""
        self._held = {
            address: (storage, size)
            for address, (storage, size) in self._held.items()
            if not storage.expired()
        }
        return sum(size for _, size in self._held.values())

    def note(self) -> None:
        """Write down what is held now."""
        self.history.append(self.now())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it returns."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._given and storage._cdata not in self._held:
                    self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
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


def trace_layer(
    run: Callable[[int], tuple[Sequence[Tensor], Callable[[], Tensor]]],
) -> LayerTrace:
    """Return what a layer needs.

    Args:
        run: (micro-batch size) to tensors that are there anyway, parameters and inputs, and a
            function that runs the layer forward. Its parameters have gradients, to which those of
            this pass are added.
    """
    forward, backward = zip(*(_histories(*run(size)) for size in TRACED_SIZES), strict=True)
    return LayerTrace(sizes=TRACED_SIZES, forward=forward, backward=backward)


def _histories(
    given: Sequence[Tensor], layer: Callable[[], Tensor]
) -> tuple[Sequence[int], Sequence[int]]:
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
    return forward, meter.history
