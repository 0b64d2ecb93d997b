"""AdamW over groups of parameters, and an optional moving average of the weights.

The average is one more tensor of the optimizer's state. DeepSpeed gives the optimizer its flat
float32 shards of the weights and keeps the state beside them. The average is therefore sharded,
saved, loaded and offloaded like the moments, under any layout.

An update can be skipped on the device: if the optimizer's `found_inf` is a tensor that contains 1,
torch's fused kernel leaves weights, moments and the count of steps unchanged, and the average does
not move. `ernie_vilg.parallel.engine.update_guard` sets it.

Frozen parameters, chosen by patterns of names, stay in the optimizer without weight decay and with
a gradient of zero. AdamW then adds exactly 0 to them, whatever layout shards them, and they add
nothing to the gradient's norm. Where adapters train, the optimizer has their parameters alone.

Source: AdamW, Loshchilov and Hutter 2019 (arXiv:1711.05101); averaging, Polyak and Juditsky 1992;
the growing decay is that of TensorFlow's ExponentialMovingAverage with num_updates.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.name_patterns import check_matches, matches
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.model.initialization import original_name
from ernie_vilg.model.lora.names import has_optimizer_state
from ernie_vilg.model.parameter_groups import UNDECAYED, group_index, parameter_groups

WEIGHT_AVERAGE = "weight_average"
"""Key of the average in a parameter's optimizer state."""
LEARNING_RATE_FACTOR = "learning_rate_factor"
"""Key, in a group of parameters, of the factor of the learning rate."""
IS_FROZEN = "is_frozen"
"""Name of a parameter's attribute that is true if it keeps its value."""


class AveragingAdamW(AdamW):
    """AdamW that also keeps an exponential moving average of the weights.

    After step t, the average moves by `1 - decay` towards the weights, with decay
    `min(ema_decay, (1 + t) / (10 + t))`: a young average forgets the first weights fast. It
    starts as the weights after the first step, or after the first step of a resumed run whose
    checkpoint has no average. A skipped step does not count and does not move it.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, ema_decay: float, **settings: Any):
        """Prepare to step.

        Args:
            groups: parameter groups.
            ema_decay: decay of the average per step, above 0 and below 1.
            settings: settings of AdamW.
        """
        super().__init__(groups, **settings)
        self._ema_decay = ema_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the weights, then their average."""
        loss = super().step(closure)
        is_skipped: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    _update_average(self.state[weight], weight, self._ema_decay, is_skipped)
        return loss


def _update_average(
    state: dict[str, Any], weight: Tensor, ema_decay: float, is_skipped: Tensor | None
) -> None:
    if WEIGHT_AVERAGE not in state:
        state[WEIGHT_AVERAGE] = weight.detach().clone()
        return
    # The decay is computed on the device: no step waits for it.
    step: Tensor = state["step"]
    decay = ((1 + step) / (10 + step)).clamp(max=ema_decay)
    fraction = torch.where(step <= 1, 1.0, 1 - decay)  # skipped steps may come before
    if is_skipped is not None:
        fraction = fraction * (1 - is_skipped)
    state[WEIGHT_AVERAGE].lerp_(weight, fraction)


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    model: ModelConfig,
    config: OptimizerConfig,
    ema_decay: float,
    frozen: Sequence[str] = (),
) -> AdamW:
    """Return AdamW over the parameters of a model or a stage.

    Groups of the settings without a parameter here, as on some stages, are left out.

    Args:
        parameters: names, layer index first, and this rank's part of each.
        model: shape of the model.
        config: settings of the optimizer.
        ema_decay: decay of the average of the weights per step; 0 keeps no average.
        frozen: patterns of parameters that keep their value, and must not decay.
    """
    members: dict[int, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if not has_optimizer_state(name, model):
            continue
        index = group_index(original_name(name, model), config)
        if is_frozen(name, model, frozen):
            index = UNDECAYED
        members.setdefault(index, []).append(parameter)
    groups = parameter_groups(config)
    return build_adamw(
        [
            group_of(members[index], groups[index].weight_decay, groups[index].learning_rate_factor)
            for index in sorted(members)
        ],
        config,
        ema_decay,
    )


def group_of(
    parameters: Iterable[nn.Parameter], weight_decay: float, learning_rate_factor: float = 1.0
) -> dict[str, Any]:
    """Return a group of parameters for torch's optimizers.

    Args:
        parameters: parameters with the same settings.
        weight_decay: their decoupled decay.
        learning_rate_factor: factor of the learning rate that the caller sets at every step.
    """
    return {
        "params": list(parameters),
        "weight_decay": weight_decay,
        LEARNING_RATE_FACTOR: learning_rate_factor,
    }


def build_adamw(
    groups: Iterable[dict[str, Any]], config: OptimizerConfig, ema_decay: float = 0.0
) -> AdamW:
    """Return AdamW.

    Args:
        groups: results of `group_of`.
        config: settings of the optimizer; the caller sets the learning rate at every step.
        ema_decay: decay of the average of the weights per step; 0 keeps no average.
    """
    groups = list(groups)
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "fused": True,
    }
    if ema_decay:
        return AveragingAdamW(groups, ema_decay=ema_decay, **settings)
    optimizer = AdamW(groups, **settings)
    optimizer.register_load_state_dict_pre_hook(_without_average)
    return optimizer


def _without_average(optimizer: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
    """Drop the average of a loaded state: this optimizer would not update it."""
    state = {
        index: {key: value for key, value in values.items() if key != WEIGHT_AVERAGE}
        for index, values in loaded["state"].items()
    }
    return {**loaded, "state": state}


def is_frozen(name: str, config: ModelConfig, patterns: Iterable[str]) -> bool:
    """Return whether a parameter keeps its value.

    Args:
        name: name such as "3.attention.output.weight"; tied weights count under the table's.
        config: the model's shape; with adapters, only they train.
        patterns: patterns of names, as in `config.name_patterns`.
    """
    if not has_optimizer_state(name, config):
        return True
    return matches(original_name(name, config), patterns)


def freeze(
    parameters: Iterable[tuple[str, nn.Parameter]], config: ModelConfig, patterns: Sequence[str]
) -> None:
    """Make the parameters of a model or a stage that match a pattern keep their value.

    Their gradient is zero. With adapters, all others have no gradient and no optimizer state.
    """
    for name, parameter in parameters:
        if not has_optimizer_state(name, config):
            parameter.requires_grad_(False)
        elif is_frozen(name, config, patterns):
            setattr(parameter, IS_FROZEN, True)
            parameter.register_hook(torch.zeros_like)  # also removes NaN and infinity


def num_trained(sizes: Mapping[str, int], config: ModelConfig, patterns: Sequence[str]) -> int:
    """Return the number of single weights that train.

    Args:
        sizes: number of weights of each parameter by name.
        config: the model's shape.
        patterns: patterns of parameters that do not train.

    Raises:
        InputError: a pattern matches no parameter, or nothing is left to train.
    """
    for pattern in patterns:
        check_matches("training.frozen", pattern, sizes, what="parameter")
    trained = sum(size for name, size in sizes.items() if not is_frozen(name, config, patterns))
    if not trained:
        raise InputError(
            f"training.frozen={','.join(patterns)} matches all {len(sizes)} parameters: leave out "
            "a pattern, or nothing trains"
        )
    return trained
