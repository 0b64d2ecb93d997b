"""Sums a step's gradients over ranks under ZeRO 1, while the last backward pass still runs.

Each rank adds up its own gradients of all parameters in flat float32 sums. Replicas divide every
flat tensor into equal partitions, one per replica, and a replica needs the total of its own
partition only. Large flat tensors are cut into ranges that lie in one partition and are reduced to
its owner; small ones are reduce-scattered whole after the backward pass. Both work in place and
move half the bytes of an all-reduce.

Backward passes complete layers from the last to the first: once a parameter of a layer gets its
gradient of the last micro-batch, all later layers are complete, and their ranges can start. All
replicas start the reductions in one fixed order, whatever the order of their gradients. Three kinds
of gradients wait for the end of the pass: those of the first layer, those of tied weights, which a
pipeline sums over its ends first, and partial ones, which tensor ranks sum first, all of them in
one all-reduce.

The totals are sums over replicas; the update divides them by the number of replicas.

Source: partitions of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054); reducing during the backward
pass as PyTorch DDP does (Li et al. 2020, arXiv:2006.15704).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ernie_vilg.parallel.engine.zero_shards import FlatGroup

RANGE_SIZE = 2**27
"""Number of elements of the largest range, 512 MiB: long enough for full bandwidth, short enough
that most of the reduction starts before the backward pass ends."""

_LATE = -1


@dataclass(frozen=True, kw_only=True)
class Range:
    """A part of the flat sums that is reduced at once."""

    sums: Tensor
    """View of the flat sums, float32 [elements]."""
    owner: int
    """Data rank that needs the total."""
    first_layer: int
    """Lowest index of a layer with a gradient in it; -1 if it must wait for the whole pass."""


class GradientReduction:
    """Reduces the flat sums of one rank, once per step."""

    def __init__(
        self,
        flat_groups: Sequence[FlatGroup],
        layers: Mapping[nn.Parameter, int],
        *,
        data_group: ProcessGroup,
        tensor_group: ProcessGroup,
        partial_parameters: Collection[nn.Parameter],
        tied_parameters: Collection[nn.Parameter],
        range_size: int = RANGE_SIZE,
    ) -> None:
        """Plan the reductions, and watch one parameter of each layer.

        Args:
            flat_groups: flat sums.
            layers: index of each parameter's layer.
            data_group: ranks that hold the same parameters.
            tensor_group: ranks among which partial gradients are summed.
            partial_parameters: parameters of which each tensor rank has a part of the gradient.
            tied_parameters: parameters whose gradients others sum after the backward pass.
            range_size: number of elements of the largest range.
        """
        self._data_group, self._tensor_group = data_group, tensor_group
        self._partial = [
            group.sums[position]
            for group in flat_groups
            for parameter, position in group.positions.items()
            if parameter in set(partial_parameters)
        ]
        self._num_passes = 0  # of a step
        self._passes: dict[int, int] | None = None  # by layer; none outside of a step
        self._works: list[dist.Work] = []
        self._num_started = 0
        self._ranges: list[Range] = []
        self._small: list[FlatGroup] = []
        if dist.get_world_size(data_group) > 1:
            late = {*partial_parameters, *tied_parameters}
            first = {
                parameter: _LATE if parameter in late else layers[parameter] for parameter in layers
            }
            self._small = [group for group in flat_groups if group.sums.numel() <= range_size]
            large = [group for group in flat_groups if group.sums.numel() > range_size]
            self._ranges = in_order_of_completion(large, first, range_size)
        self._watch(layers)

    def begin(self, num_passes: int) -> None:
        """Expect the backward passes of a step from now on.

        Args:
            num_passes: number of them.
        """
        self._num_passes, self._passes = num_passes, {}

    def finish(self) -> None:
        """Start the reductions that are left, after the backward passes and before `wait`."""
        self._passes = None
        if self._partial:
            flat = torch.cat(self._partial)
            dist.all_reduce(flat, group=self._tensor_group)
            torch._foreach_copy_(
                self._partial, list(flat.split([sums.numel() for sums in self._partial]))
            )
        self._start(len(self._ranges))
        for group in self._small:
            self._add(
                dist.reduce_scatter_tensor(
                    group.own_sums, group.sums, group=self._data_group, async_op=True
                )
            )
        self._num_started = 0

    def wait(self) -> None:
        """Make the device, or the host without one, wait for the reductions."""
        for work in self._works:
            work.wait()
        self._works.clear()

    def _watch(self, layers: Mapping[nn.Parameter, int]) -> None:
        """Watch the last vector of each layer: the weights of linear layers get no gradient from
        autograd, and the last one is the first to be complete.
        """
        last = {layers[each]: each for each in layers if each.ndim == 1 and each.requires_grad}
        for layer, parameter in last.items():
            parameter.register_post_accumulate_grad_hook(partial(self._note, layer))

    def _note(self, layer: int, parameter: Tensor) -> None:
        if self._passes is None:
            return
        passes = self._passes[layer] = self._passes.get(layer, 0) + 1
        assert passes <= self._num_passes, f"layer {layer} had {passes} backward passes in a step"
        if passes == self._num_passes:
            complete = (each.first_layer <= layer for each in self._ranges)
            self._start(
                next((at for at, is_open in enumerate(complete) if is_open), len(self._ranges))
            )

    def _start(self, end: int) -> None:
        """Start the reductions of the ranges up to an index."""
        for each in self._ranges[self._num_started : end]:
            self._add(
                dist.reduce(
                    each.sums,
                    dst=dist.get_global_rank(self._data_group, each.owner),
                    group=self._data_group,
                    async_op=True,
                )
            )
        self._num_started = max(self._num_started, end)

    def _add(self, work: Any) -> None:
        self._works.append(work)


def in_order_of_completion(
    flat_groups: Sequence[FlatGroup], first_layers: Mapping[nn.Parameter, int], range_size: int
) -> list[Range]:
    """Cut flat sums into ranges, those first that a backward pass completes first.

    Args:
        flat_groups: flat sums.
        first_layers: index of each parameter's layer; -1 for gradients that wait for the whole
            backward pass.
        range_size: number of elements of the largest range.
    """
    ranges = [one for group in flat_groups for one in _ranges(group, first_layers, range_size)]
    return sorted(ranges, key=lambda each: -each.first_layer)


def _ranges(
    group: FlatGroup, first_layers: Mapping[nn.Parameter, int], range_size: int
) -> Iterator[Range]:
    end = max(position.stop for position in group.positions.values())  # padding needs no reduction
    size = group.shard.numel()
    for begin in range(0, end, size):
        for start in range(begin, min(begin + size, end), range_size):
            stop = min(start + range_size, begin + size, end)
            yield Range(
                sums=group.sums[start:stop],
                owner=begin // size,
                first_layer=min(
                    first_layers[parameter]
                    for parameter, position in group.positions.items()
                    if position.start < stop and start < position.stop
                ),
            )
