"""The flat float32 tensors that DeepSpeed's ZeRO optimizers update, and the parameters in them.

DeepSpeed has three such optimizers, with different names for the same things. Only this module uses
their attributes; other modules ask a `ZeroShards`, which `zero_shards` chooses by the optimizer's
class. Each rank updates some flat tensors, the shards. A shard holds pieces of several parameters,
and torch's optimizer keeps moments of the same shape beside it.

Source: DeepSpeed 0.19.8, runtime/bf16_optimizer.py, runtime/zero/stage_1_and_2.py,
runtime/zero/stage3.py and utils/tensor_fragment.py.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

_SAVED_STATES = ("base_optimizer_state", "optimizer_state_dict")
_SAVED_SHARDS = ("single_partition_of_fp32_groups", "fp32_flat_groups")
"""Keys of an optimizer file, under ZeRO 1 and 2, and under ZeRO 3."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The part of one parameter that this rank updates."""

    shard: Tensor
    """Float32 tensor that torch's optimizer updates."""
    in_shard: slice
    """Position in the shard."""
    in_parameter: slice
    """Position in the flattened parameter, as this tensor rank holds it."""


@dataclass(frozen=True, kw_only=True)
class FlatGroup:
    """Flat tensors of one group of parameters under ZeRO 1, whose sums hold whole gradients."""

    sums: Tensor
    """Float32 sums of the gradients of all parameters, then padding, [data ranks * partition]."""
    own_sums: Tensor
    """View of this rank's partition of the sums, [partition]."""
    shard: Tensor
    """Float32 weights of this rank's partition, which torch's optimizer updates, [partition]."""
    partition_start: int
    """Index of the partition's first element."""
    positions: Mapping[nn.Parameter, slice]
    """Position of each parameter's gradient in the sums, in order."""


class ZeroShards:
    """The shards of ZeRO 1 and 2; each other optimizer has a subclass."""

    _shards, _parameters = "single_partition_of_fp32_groups", "bit16_groups"

    def __init__(self, optimizer: Any, data_rank: int) -> None:
        """Wrap one of DeepSpeed's optimizers; see `zero_shards`."""
        self._zero = optimizer
        self.optimizer: Optimizer = optimizer.optimizer
        """Optimizer of torch, which updates the shards."""
        self._data_rank = data_rank
        names = ("cpu_offload", "offload_optimizer")  # under ZeRO 1 and 2, and under ZeRO 3
        self.is_offloaded = any(getattr(optimizer, name, False) for name in names)
        """Whether shards and their gradients are in host memory."""

    @property
    def has_overflowed(self) -> bool:
        """Whether DeepSpeed skipped the last update, as the norm of the gradient was not finite."""
        return bool(self._zero.overflow)

    @property
    def data_group(self) -> ProcessGroup:
        """DeepSpeed's group of the ranks that hold the same parameters."""
        group: ProcessGroup = self._zero.dp_process_group
        return group

    @property
    def gradient_norm(self) -> Tensor | float:
        """Norm of the last step's whole gradient, before clipping."""
        norm: Tensor | float = self._zero._global_grad_norm
        return norm

    def replace_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Make the engine call `step` for each update, and return the original method."""
        original: Callable[..., Any] = self._zero.step
        self._zero.step = step
        return original

    def tensors(self) -> list[Tensor]:
        """Return every tensor that torch's optimizer updates; some hold nothing but padding."""
        return list(getattr(self._zero, self._shards))

    def pieces(self) -> dict[nn.Parameter, Piece]:
        """Return this rank's piece of each parameter that it updates a part of."""
        groups = zip(self.tensors(), getattr(self._zero, self._parameters), strict=True)
        return {
            parameter: Piece(
                shard=shard,
                in_shard=_slice(parameter._hp_mapping.hp_fragment_address),
                in_parameter=_slice(parameter._hp_mapping.lp_fragment_address),
            )
            for shard, parameters in groups
            for parameter in parameters
            if parameter._hp_mapping is not None  # else other ranks update all of it
        }

    def gradients(self) -> list[Tensor]:
        """Return the reduced gradients of the shards, between the backward pass and the update."""
        if self.is_offloaded:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the update waits for the copies to the host as well
            return [shard.grad for shard in self.tensors() if shard.grad is not None]
        groups = self._zero.averaged_gradients.values()
        return [one for group in groups for one in group or () if one is not None]

    def gradient_parts(self) -> list[list[Tensor]]:
        """Return each shard's reduced gradient, as flat tensors that follow each other in it.

        They are means over replicas, but for ZeRO 1, whose sums hold `flat_groups`; in float16 they
        are times `loss_scale`. A shard without a gradient has no parts.
        """
        if self.is_offloaded:
            self.gradients()  # waits for the copies to the host
            return [[] if one.grad is None else [one.grad.flatten()] for one in self.tensors()]
        groups = self._zero.averaged_gradients
        return [
            [one.flatten() for one in groups.get(index) or ()]
            for index in range(len(self.tensors()))
        ]

    def settings(self) -> list[dict[str, Any]]:
        """Return the settings that torch's optimizer updates each shard by."""
        return list(self.optimizer.param_groups)

    @property
    def loss_scale(self) -> float:
        """Number by which DeepSpeed multiplies the loss, 1 but in float16."""
        return float(getattr(self._zero, "loss_scale", 1.0))

    def flat_groups(self) -> list[FlatGroup]:
        """Return the flat tensors of ZeRO 1; none under an optimizer without flat sums."""
        return []

    def summed_parameters(self) -> dict[nn.Parameter, Tensor]:
        """Return the float32 sums of each parameter's gradient, if the optimizer keeps such sums.

        A layer may add to them instead of returning a gradient; gradients that autograd leaves in
        parameters are added by a hook.
        """
        return {}

    def drop_gradients(self) -> None:
        """Drop the gradients of an update that DeepSpeed skipped.

        DeepSpeed 0.19.8 does so itself, but for ZeRO 1 and 2 with an offloaded optimizer: there it
        would add the next step's gradients to them.
        """
        if getattr(self._zero, "cpu_offload", False):
            for group in self._zero.averaged_gradients:
                self._zero.averaged_gradients[group] = None

    def update_model(self) -> None:
        """Copy the shards to the model's weights, as DeepSpeed does after an update."""
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()
        self._zero.update_lp_params()

    @contextlib.contextmanager
    def showing(self, state: str) -> Iterator[None]:
        """Let the model compute with a state of torch's optimizer in place of the weights.

        Shards and states change places, so that no memory is needed for a third copy but that of
        one shard, and go back exactly; all ranks of a replica must call.

        Args:
            state: key of the state, which has the shape of the weights, such as their average.
        """
        self._exchange(state)
        try:
            self.update_model()
            yield
        finally:
            self._exchange(state)
            self.update_model()

    def _exchange(self, state: str) -> None:
        for shard in self.tensors():
            other = self.optimizer.state.get(shard, {}).get(state)
            if other is not None:  # None: a shard of nothing but padding has no gradient, no state
                weights = shard.detach().clone()
                shard.data.copy_(other)
                other.copy_(weights)

    def model_weights(self, parameter: nn.Parameter) -> tuple[Tensor, slice]:
        """Return this rank's part of the weights that the model computes with.

        Returns:
            the part, flat, and its position in the flattened parameter.
        """
        return parameter.detach().flatten(), slice(0, parameter.numel())

    def is_replicated(self, parameter: nn.Parameter) -> bool:
        """Return whether every data-parallel rank keeps the whole parameter between steps."""
        return True


class Bf16Shards(ZeroShards):
    """Shards of ZeRO 1 in bfloat16 and float32, whose gradients are summed in float32."""

    _shards, _parameters = "fp32_groups_flat_partition", "bf16_groups"

    def __init__(self, optimizer: Any, data_rank: int) -> None:
        """Make DeepSpeed add gradients to the sums in one pass, and never ask for whom it has any.

        It would convert each gradient to float32 in a copy. A sum without a gradient is zero, which
        neither norm nor clipping need to leave out.
        """
        super().__init__(optimizer, data_rank)
        self._sums: dict[nn.Parameter, Tensor] = {}
        for index, parameters in enumerate(optimizer.bf16_groups):
            for parameter, sums in zip(
                parameters, optimizer.fp32_groups_gradients[index], strict=True
            ):
                self._sums[parameter] = sums.view(parameter.shape)
                parameter._hp_grad = sums  # a pipeline sums those of tied weights
            optimizer.fp32_groups_has_gradients[index] = [True] * len(parameters)
        optimizer.fp16_groups = optimizer.bf16_groups  # a save in float32 looks for them
        optimizer.clear_hp_grads = self._clear_sums
        optimizer.accumulate_hp_grads_and_remove_lp = self._take_gradient

    def summed_parameters(self) -> dict[nn.Parameter, Tensor]:
        """Return the float32 sums of each parameter's gradient, of its shape."""
        return dict(self._sums)

    def gradients(self) -> list[Tensor]:
        """Return this rank's partitions of the sums."""
        return list(self._zero.fp32_groups_gradient_flat_partition)

    def gradient_parts(self) -> list[list[Tensor]]:
        """Return this rank's partitions of the sums over replicas."""
        return [[partition] for partition in self.gradients()]

    def flat_groups(self) -> list[FlatGroup]:
        """Return the flat tensors of each group of parameters."""
        zero, groups = self._zero, []
        for sums, shard, parameters in zip(
            zero.fp32_groups_gradients_flat, self.tensors(), zero.bf16_groups, strict=True
        ):
            ends = list(accumulate(parameter.numel() for parameter in parameters))
            start = self._data_rank * shard.numel()
            groups.append(
                FlatGroup(
                    sums=sums,
                    own_sums=sums[start : start + shard.numel()],
                    shard=shard,
                    partition_start=start,
                    positions={
                        parameter: slice(end - parameter.numel(), end)
                        for parameter, end in zip(parameters, ends, strict=True)
                    },
                )
            )
        return groups

    def replace_reduction(self, reduce: Callable[[], None]) -> None:
        """Make the engine call `reduce` after the last backward pass and reduce nothing itself.

        Both of DeepSpeed's engines ask for the gradients to reduce: of non-experts, and of experts.
        """

        def nothing_is_left() -> tuple[list[Tensor], dict[str, list[Tensor]]]:
            reduce()
            return [], {}

        assert self._zero.immediate_grad_update, "gradients reach the sums after the backward pass"
        self._zero.get_grads_for_reduction = nothing_is_left

    def show_update(self, gradient_norm: Tensor) -> None:
        """Copy the updated shards to the model, and set the norm that DeepSpeed reports.

        Args:
            gradient_norm: norm of the whole gradient before clipping, float32 [].
        """
        self._zero._global_grad_norm = gradient_norm
        self._zero._lazy_init_hp_params_optimizer_state()
        self._zero.update_lp_params()

    def _clear_sums(self) -> None:
        for flat in self._zero.fp32_groups_gradients_flat:
            flat.zero_()

    def _take_gradient(self, parameter: nn.Parameter, *indices: int) -> None:
        """Add the gradient that autograd has just left in a parameter."""
        if parameter.grad is not None:  # else the sums have it already
            self._sums[parameter].add_(parameter.grad)
            parameter.grad = None


class _Zero3Shards(ZeroShards):
    """Shards of ZeRO 3, which partitions the model's weights as well."""

    _shards, _parameters = "fp32_partitioned_groups_flat", "fp16_groups"

    def pieces(self) -> dict[nn.Parameter, Piece]:
        pieces = {}
        for parameters, shard in zip(self._zero.fp16_groups, self.tensors(), strict=True):
            start = 0
            for parameter in parameters:
                part = self._part(parameter)
                position = slice(start, start + part.stop - part.start)
                pieces[parameter] = Piece(shard=shard, in_shard=position, in_parameter=part)
                start += parameter.partition_numel()
        return pieces

    def settings(self) -> list[dict[str, Any]]:
        groups, indices = self.optimizer.param_groups, self._zero.sub_group_to_group_id
        return [groups[indices[index]] for index in range(len(self.tensors()))]

    def update_model(self) -> None:
        self._zero.checkpoint_event_prologue()  # partitions small parameters, which are kept whole
        for index in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        self._zero.checkpoint_event_epilogue()

    def model_weights(self, parameter: Any) -> tuple[Tensor, slice]:
        part = self._part(parameter)
        return parameter.ds_tensor.detach().flatten()[: part.stop - part.start], part

    def is_replicated(self, parameter: Any) -> bool:
        return bool(parameter.ds_persist)

    def _part(self, parameter: Any) -> slice:
        """Return the part of a parameter that this rank has; all are equal but the last ones."""
        size, whole = parameter.partition_numel(), parameter.ds_numel
        start = min(self._data_rank * size, whole)
        return slice(start, min(start + size, whole))


def zero_shards(optimizer: Any, data_rank: int) -> ZeroShards:
    """Return the shards of any of DeepSpeed's ZeRO optimizers.

    Args:
        optimizer: DeepSpeed's, around torch's.
        data_rank: this rank's index along the data axis.
    """
    kinds = {BF16_Optimizer: Bf16Shards, DeepSpeedZeroOptimizer_Stage3: _Zero3Shards}
    return kinds.get(type(optimizer), ZeroShards)(optimizer, data_rank)


def set_loss_scale(optimizer: Any, values: Mapping[str, float]) -> None:
    """Continue from a saved loss scale, if DeepSpeed's optimizer has a dynamic one."""
    if getattr(optimizer, "dynamic_loss_scale", False):
        for key, value in values.items():
            setattr(optimizer.loss_scaler, key, value)


def saved_loss_scale(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the dynamic loss scale that DeepSpeed saved; none without one."""
    scale = vars(content["loss_scaler"]) if content.get("dynamic_loss_scale") else {}
    return {key: value for key, value in scale.items() if isinstance(value, int | float)}


def saved_states(content: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the state that torch's optimizer saved for each shard."""
    states: dict[int, dict[str, Any]] = content[_SAVED_STATES[_is_of_zero3(content)]]["state"]
    return states


def replace_saved_shards(content: dict[str, Any], shards: Sequence[Tensor]) -> None:
    """Replace the shards that DeepSpeed's optimizer saved."""
    content[_SAVED_SHARDS[_is_of_zero3(content)]] = list(shards)


def _is_of_zero3(content: Mapping[str, Any]) -> bool:
    return _SAVED_SHARDS[1] in content


def _slice(address: Any) -> slice:
    return slice(address.start, address.start + address.numel)
