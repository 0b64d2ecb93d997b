"""The weights of a network, their gradients and AdamW's state, in two flat tensors of each kind.

One flat tensor holds the weights that decay, the other the rest; the network's parameters and their
gradients are views. So gradients are summed over ranks, measured and used in a few large
operations, whatever the number of layers, and always in one order. Kernels of convolutions lie in
memory channels last, as convolutions read them.

Source: flat groups of weights, as in DeepSpeed and megatron-core.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.parallel.engine.optimizer import (
    WEIGHT_AVERAGE,
    AveragingAdamW,
    build_adamw,
    group_of,
)

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Keys of AdamW's moments in its state."""

WEIGHT = "weight"
"""Kind of the weights, beside the keys of AdamW's state."""

_KERNEL_DIMS = 4  # [out, in, height, width]
_ALIGNMENT = 16  # elements, 64 bytes, to which each parameter's place is rounded up


class FlatWeights:
    """A network and its optimizer; the network must not be moved or cast afterwards."""

    def __init__(self, network: nn.Module, config: OptimizerConfig, ema_decay: float) -> None:
        """Move the network's parameters into flat tensors on their device.

        Args:
            network: network with float32 weights.
            config: settings of AdamW; only kernels of convolutions decay.
            ema_decay: decay of the average of the weights per step; 0 keeps no average.
        """
        self.network = network
        """Network whose parameters are views of the flat tensors."""
        named = list(network.named_parameters())
        kernels = [each for each in named if each[1].dim() == _KERNEL_DIMS]
        others = [each for each in named if each[1].dim() != _KERNEL_DIMS]
        self._groups = [_FlatGroup(kernels), _FlatGroup(others)]
        self.gradients = [group.gradients for group in self._groups]
        """Flat gradients, summed over micro-batches and then over ranks, float32 [elements]."""
        decayed, undecayed = (group.weights for group in self._groups)
        self.optimizer: Any = build_adamw(
            [group_of([decayed], config.weight_decay), group_of([undecayed], 0.0)],
            config,
            ema_decay,
        )
        """AdamW over the flat weights."""
        for group in self._groups:
            # The state that AdamW's first step makes, so that there always is one to save.
            self.optimizer.state[group.weights] = {
                "step": torch.zeros((), device=group.weights.device),
                **{name: torch.zeros_like(group.weights) for name in MOMENTS},
            }

    def clear_gradients(self) -> None:
        """Set all gradients to 0."""
        torch._foreach_zero_(self.gradients)

    def step(self, learning_rate: float, divisor: Tensor | None, is_skipped: Tensor) -> None:
        """Make or skip one update, by a flag that the host does not read.

        Args:
            learning_rate: learning rate of the update.
            divisor: number by which gradients are divided, float32 []; None: 1.
            is_skipped: 1 if nothing may change, else 0, float32 [].
        """
        for settings, group in zip(self.optimizer.param_groups, self._groups, strict=True):
            settings["lr"] = learning_rate
            group.weights.grad = group.gradients
        self.optimizer.grad_scale, self.optimizer.found_inf = divisor, is_skipped
        try:
            self.optimizer.step()
        finally:
            self.optimizer.grad_scale = self.optimizer.found_inf = None

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield each parameter's name, and its part of the flat tensors with their kinds."""
        for group in self._groups:
            for kind, values in self._flat(group).items():
                for name, view in group.views(values).items():
                    yield name, kind, view

    def flat_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield "kernels" or "others", kind and flat value of everything that steps change."""
        for name, group in zip(("kernels", "others"), self._groups, strict=True):
            for kind, flat in self._flat(group).items():
                yield name, kind, flat

    def average(self) -> dict[str, Tensor]:
        """Return the average of each weight by name; empty where none is kept or was started."""
        return {name: value for name, kind, value in self.tensors() if kind == WEIGHT_AVERAGE}

    def restart_rows(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Start rows of a parameter afresh, whose weights were set, int64 [rows].

        Their moments become 0, and their average, where there is one, the weights.
        """
        (name,) = (name for name, each in self.network.named_parameters() if each is parameter)
        for other, kind, value in self.tensors():
            if other == name and kind in MOMENTS:
                value[rows] = 0
            if other == name and kind == WEIGHT_AVERAGE:
                value[rows] = parameter.detach()[rows]

    def state(self) -> dict[str, Any]:
        """Return network and optimizer as dictionaries of tensors, views of this state."""
        kinds: dict[str, dict[str, Tensor]] = {}
        for name, kind, value in self.tensors():
            kinds.setdefault(kind, {})[name] = value
        kinds.pop(WEIGHT)
        steps = [self.optimizer.state[group.weights]["step"] for group in self._groups]
        return {"network": dict(self.network.state_dict()), "updates": torch.stack(steps), **kinds}

    def fits(self, state: Mapping[str, Any]) -> bool:
        """Return whether a result of `state` is of a network of the same shapes."""
        shapes = {name: value.shape for name, value in self.network.state_dict().items()}
        return shapes == {name: value.shape for name, value in state["network"].items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a result of `state` of the same network.

        An average is taken over if this optimizer keeps one; if the state has none, it starts
        after the next step.
        """
        self.network.load_state_dict(state["network"])
        for group, updates in zip(self._groups, state["updates"], strict=True):
            values = self.optimizer.state[group.weights]
            values["step"].copy_(updates)
            values.pop(WEIGHT_AVERAGE, None)
            if self._keeps_average and WEIGHT_AVERAGE in state:
                values[WEIGHT_AVERAGE] = torch.zeros_like(group.weights)
        for name, kind, value in self.tensors():
            if kind != WEIGHT:
                value.copy_(state[kind][name])

    def _flat(self, group: "_FlatGroup") -> dict[str, Tensor]:
        """Return the flat tensors of a group by kind."""
        state = self.optimizer.state[group.weights]
        kinds = [kind for kind in (*MOMENTS, WEIGHT_AVERAGE) if kind in state]
        return {WEIGHT: group.weights.detach(), **{kind: state[kind] for kind in kinds}}

    @property
    def _keeps_average(self) -> bool:
        return isinstance(self.optimizer, AveragingAdamW)


class _FlatGroup:
    """Flat weights and gradients of some parameters, float32 [elements] each."""

    def __init__(self, named: list[tuple[str, nn.Parameter]]) -> None:
        self._shapes = {name: parameter.shape for name, parameter in named}
        size = sum(_room(shape) for shape in self._shapes.values())
        device = named[0][1].device
        self.weights = nn.Parameter(torch.zeros(size, device=device), requires_grad=False)
        self.gradients = torch.zeros(size, device=device)
        weights, gradients = self.views(self.weights), self.views(self.gradients)
        with torch.no_grad():
            for name, parameter in named:
                weights[name].copy_(parameter)
                parameter.data, parameter.grad = weights[name], gradients[name]

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return each parameter's part of a flat tensor, in the parameter's shape."""
        views, start = {}, 0
        for name, shape in self._shapes.items():
            part = flat.detach()[start : start + shape.numel()]
            views[name] = _in_shape(part, shape)
            start += _room(shape)
        return views


def _room(shape: torch.Size) -> int:
    return -(-shape.numel() // _ALIGNMENT) * _ALIGNMENT


def _in_shape(part: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) != _KERNEL_DIMS:
        return part.view(shape)
    out, into, height, width = shape
    return part.view(out, height, width, into).permute(0, 3, 1, 2)
