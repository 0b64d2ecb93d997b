"""Makes the update of one step: DeepSpeed's own, or under ZeRO 1 one that reads gradients twice.

An update has three parts. `begin_step` comes before the first backward pass. `norms` reads this
rank's gradients, for a decision of all ranks. `apply` obeys the decision, which is a flag on the
device: a skipped update leaves weights, moments and the count of steps as they are, bit for bit.

The update of ZeRO 1 reads its partition of the gradients once for both norms, the one that counts
every element of the whole gradient once and the one that sees every value of this rank. Clipping
and the mean over replicas are one factor, by which torch's fused AdamW divides gradients as it
reads them (`grad_scale`, the protocol of torch's GradScaler). The host waits for nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.initialization import has_partial_gradient
from ernie_vilg.parallel.engine.gradient_reduction import GradientReduction
from ernie_vilg.parallel.engine.zero_shards import Bf16Shards, FlatGroup, ZeroShards
from ernie_vilg.parallel.layout.groups import Groups

_SEGMENT_SIZES = {"cuda": 2**24, "cpu": 2**16}
"""Number of elements whose squares are added in float32, by kind of device; the rest is added in
float64. A CPU adds one by one: the norm of 30 million elements at once would be 0.1 % too small."""
_CLIP_EPSILON = 1e-6
"""Term added to a norm before the largest one is divided by it, as torch and DeepSpeed do."""


class Update(ABC):
    """The update of one engine."""

    @abstractmethod
    def begin_step(self, num_passes: int) -> None:
        """Prepare for the backward passes of a step.

        Args:
            num_passes: number of them.
        """

    @abstractmethod
    def norms(self) -> Tensor:
        """Return norms of this rank's gradients, float64 [2] on the device.

        Returns:
            the norm of every value, which is not finite if one of them is not, and the sum of the
            squares that count: each element of the whole gradient counts on one rank. The latter is
            0 where DeepSpeed computes the norm of the whole gradient.
        """

    @abstractmethod
    def apply(self, is_skipped: Tensor, squares: Tensor) -> Tensor:
        """Update the weights, or skip the update.

        Args:
            is_skipped: 1 if the update is to be skipped, else 0, float32 [] on the device.
            squares: sum over all ranks of the squares that count, float64 [] on the device.

        Returns:
            the norm of the whole gradient before clipping, float64 []; infinity or NaN if DeepSpeed
            has skipped the update.
        """


class DeepSpeedUpdate(Update):
    """The update that DeepSpeed's optimizer makes."""

    def __init__(
        self, shards: ZeroShards, update: Callable[[], Any], device: torch.device, *, has_norm: bool
    ) -> None:
        """Wrap the update.

        Args:
            shards: tensors that the optimizer updates.
            update: DeepSpeed's own.
            device: device of the model.
            has_norm: whether to compute norms; not if the gradients are scaled.
        """
        self._shards, self._update = shards, update
        self._device, self._has_norm = device, has_norm

    def begin_step(self, num_passes: int) -> None:
        """Do nothing."""

    def norms(self) -> Tensor:
        """Return the norm of the gradients that this rank is about to use, and 0."""
        norm = torch.zeros((), device=self._device)
        if self._has_norm:
            norm = get_total_norm(self._shards.gradients()).to(self._device)
        return torch.stack([norm, torch.zeros_like(norm)]).double()

    def apply(self, is_skipped: Tensor, squares: Tensor) -> Tensor:
        """Let DeepSpeed make or skip the update."""
        optimizer: Any = self._shards.optimizer
        # The optimizer would copy the flag to the host without waiting for the copy.
        optimizer.found_inf = is_skipped.cpu() if self._shards.is_offloaded else is_skipped
        try:
            self._update()
        finally:
            optimizer.found_inf = None
        norm = torch.as_tensor(self._shards.gradient_norm, device=self._device).double()
        if self._shards.has_overflowed:
            self._shards.drop_gradients()
            norm = torch.full_like(norm, torch.inf)
        return norm.reshape(())


class Zero1Update(Update):
    """The update of flat shards under ZeRO 1."""

    def __init__(
        self,
        shards: Bf16Shards,
        reduction: GradientReduction,
        groups: Groups,
        *,
        gradient_clipping: float,
    ) -> None:
        """Take the place of DeepSpeed's reduction and norms.

        Args:
            shards: tensors that the optimizer updates.
            reduction: reduction of their gradients.
            groups: this rank's groups.
            gradient_clipping: largest norm of the gradient; 0 turns clipping off.
        """
        self._shards, self._reduction = shards, reduction
        self._groups = shards.flat_groups()
        self._clipping, self._num_replicas = gradient_clipping, groups.data_size
        self._counted, self._others = _segments(self._groups, groups.tensor_rank)
        shards.replace_reduction(reduction.finish)

    def begin_step(self, num_passes: int) -> None:
        """Expect backward passes, during the last of which reductions start."""
        self._reduction.begin(num_passes)

    def norms(self) -> Tensor:
        """Read this rank's partition once; waits for its reduction."""
        self._reduction.wait()
        norms = torch._foreach_norm([*self._counted, *self._others])
        # [segments], of means over replicas
        squares = (torch.stack(norms).double() / self._num_replicas).square()
        return torch.stack([squares.sum().sqrt(), squares[: len(self._counted)].sum()])

    def apply(self, is_skipped: Tensor, squares: Tensor) -> Tensor:
        """Update the shards with clipped means, then the model's weights."""
        norm = squares.sqrt()
        optimizer: Any = self._shards.optimizer
        for group in self._groups:
            group.shard.grad = group.own_sums
        optimizer.found_inf = is_skipped
        optimizer.grad_scale = gradient_divisor(norm, self._clipping, self._num_replicas)
        try:
            optimizer.step()
        finally:
            optimizer.found_inf = optimizer.grad_scale = None
        self._shards.show_update(norm.masked_fill(~norm.isfinite(), torch.inf).float())
        return norm


def gradient_divisor(norm: Tensor, clipping: float, count: int) -> Tensor | None:
    """Return the number to divide summed gradients by, for their mean and for clipping.

    Args:
        norm: norm of the mean gradient, float64 [].
        clipping: largest norm of the gradient; 0 turns clipping off.
        count: number of gradients in each sum.

    Returns:
        float32 []; None: the sums are used as they are.
    """
    if not clipping:
        return norm.new_full((), count).float() if count > 1 else None
    excess = ((norm + _CLIP_EPSILON) / clipping).clamp(min=1)
    return (excess * count).float()


def norm_segments(flat: Tensor) -> Sequence[Tensor]:
    """Return views of a flat tensor that are short enough to add their squares in float32."""
    return flat.split(_SEGMENT_SIZES[flat.device.type])


def zero1_update(
    module: nn.Module,
    shards: ZeroShards,
    groups: Groups,
    run: PretrainConfig,
) -> Zero1Update | None:
    """Return the update of ZeRO 1; None under an optimizer that DeepSpeed updates.

    Args:
        module: this rank's layers.
        shards: tensors that the optimizer updates.
        groups: this rank's groups.
        run: settings of the run.
    """
    flat_groups = shards.flat_groups()
    if not flat_groups:
        return None
    assert isinstance(shards, Bf16Shards), "no other optimizer has flat sums"
    tied: Any = getattr(module, "get_tied_weights_and_groups", list)
    named = {name: each for name, each in module.named_parameters() if each.requires_grad}
    reduction = GradientReduction(
        flat_groups,
        {parameter: int(name.partition(".")[0]) for name, parameter in named.items()},
        data_group=shards.data_group,
        tensor_group=groups.tensor_group,
        partial_parameters=partial_parameters(named, run, groups),
        tied_parameters=[weight for weight, _ in tied()],
    )
    return Zero1Update(shards, reduction, groups, gradient_clipping=run.optimizer.gradient_clipping)


def partial_parameters(
    named: Mapping[str, nn.Parameter], run: PretrainConfig, groups: Groups
) -> list[nn.Parameter]:
    """Return the trained parameters of which each tensor rank computes a part of the gradient."""
    if groups.tensor_size == 1:
        return []
    is_split = run.parallelism.sequence_parallel
    return [
        parameter
        for name, parameter in named.items()
        if parameter.requires_grad and has_partial_gradient(name, sequence_parallel=is_split)
    ]


def _segments(groups: Iterable[FlatGroup], tensor_rank: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return this rank's partitions of the sums in pieces: those that count, and the others."""
    segments: dict[bool, list[Tensor]] = {True: [], False: []}
    for group in groups:
        runs = groupby(_own_parts(group), key=lambda each: counts_once(each[0], tensor_rank))
        for counts, parts in runs:
            positions = [position for _, position in parts]
            own = group.own_sums[positions[0].start : positions[-1].stop]
            segments[counts] += norm_segments(own)
    return segments[True], segments[False]


def _own_parts(group: FlatGroup) -> Iterator[tuple[nn.Parameter, slice]]:
    """Yield the parameters of this rank's partition, and their positions in it."""
    size = group.own_sums.numel()
    for parameter, position in group.positions.items():
        start = max(position.start - group.partition_start, 0)
        stop = min(position.stop - group.partition_start, size)
        if start < stop:
            yield parameter, slice(start, stop)


def counts_once(parameter: Any, tensor_rank: int) -> bool:
    """Return whether this tensor rank's part of a parameter counts in a sum over all ranks.

    A tensor that ranks hold alike counts on one of them: on the first tensor rank, and on the first
    stage if it is tied. Its replicas divide it among themselves.

    Args:
        parameter: marked by `mark_split_parameters`.
        tensor_rank: this rank's index along the tensor axis.
    """
    is_copy = getattr(parameter, "ds_pipe_replicated", False)
    return not is_copy and (tensor_rank == 0 or parameter.tensor_model_parallel)
