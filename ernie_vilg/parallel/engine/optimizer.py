"""AdamW over the parameters that decay and those that do not, with an average of the weights.

The average is one more tensor of the optimizer's state. DeepSpeed hands the optimizer its flat
float32 shares of the weights and keeps the state beside them: so the average is sharded, saved,
loaded and offloaded as the moments are, whatever the layout.

An update may be called off on the device: where `found_inf` of the optimizer is a tensor that holds
1, torch's fused kernel changes neither weights nor moments nor the count of steps, and the average
stays where it is. `ernie_vilg.parallel.engine.update_guard` sets it.

Source: AdamW, Loshchilov and Hutter 2019 (arXiv:1711.05101); averaging, Polyak and Juditsky 1992;
the growing decay is that of TensorFlow's ExponentialMovingAverage with num_updates.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.model.initialization import original_name, takes_weight_decay

WEIGHT_AVERAGE = "weight_average"
"""The average's key in the state of a parameter."""


class AveragingAdamW(AdamW):
    """AdamW that also keeps an exponential moving average of the weights.

    After step t, the average moves by `1 - decay` towards the weights, with decay
    `min(ema_decay, (1 + t) / (10 + t))`: a young average forgets the first weights fast. It
    starts as the weights after the first step, or after the first step of a resumed run whose
    checkpoint has none. A step that is called off does not count and does not move it.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, ema_decay: float, **settings: Any):
        """Prepare to step.

        Args:
            groups: parameter groups.
            ema_decay: of the average per step, above 0 and below 1.
            settings: AdamW's.
        """
        super().__init__(groups, **settings)
        self._ema_decay = ema_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the weights, then their average."""
        loss = super().step(closure)
        is_called_off: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    _update_average(self.state[weight], weight, self._ema_decay, is_called_off)
        return loss


def _update_average(
    state: dict[str, Any], weight: Tensor, ema_decay: float, is_called_off: Tensor | None
) -> None:
    if WEIGHT_AVERAGE not in state:
        state[WEIGHT_AVERAGE] = weight.detach().clone()
        return
    # On the device, so that no step waits for it.
    step: Tensor = state["step"]
    decay = ((1 + step) / (10 + step)).clamp(max=ema_decay)
    share = torch.where(step <= 1, 1.0, 1 - decay)  # it may be older, of steps called off
    if is_called_off is not None:
        share = share * (1 - is_called_off)
    state[WEIGHT_AVERAGE].lerp_(weight, share)


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    model: ModelConfig,
    config: OptimizerConfig,
    ema_decay: float,
) -> AdamW:
    """Return AdamW over the parameters of a model or a stage.

    Args:
        parameters: names, layer index first, and this rank's share of each.
        model: the model's shape.
        config: the optimizer's settings.
        ema_decay: of the average of the weights per step; 0 keeps none.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_decayed = takes_weight_decay(original_name(name, model))
        (decayed if is_decayed else others).append(parameter)
    return build_adamw(decayed, others, config, ema_decay)


def build_adamw(
    decayed: Iterable[nn.Parameter],
    others: Iterable[nn.Parameter],
    config: OptimizerConfig,
    ema_decay: float = 0.0,
) -> AdamW:
    """Return AdamW.

    Args:
        decayed: parameters that `config.weight_decay` pulls to zero.
        others: parameters that nothing does.
        config: the settings; the learning rate is set anew at every step.
        ema_decay: of the average of the weights per step; 0 keeps none.
    """
    groups: list[dict[str, Any]] = [
        {"params": list(decayed), "weight_decay": config.weight_decay},
        {"params": list(others), "weight_decay": 0.0},
    ]
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
    """Drop the average that an earlier part of the run kept: no step would move it any more."""
    state = {
        index: {key: value for key, value in values.items() if key != WEIGHT_AVERAGE}
        for index, values in loaded["state"].items()
    }
    return {**loaded, "state": state}
