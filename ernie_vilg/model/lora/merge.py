"""Weights of a model with adapters, merged to those of one without.

Source: LoRA (arXiv:2106.09685, section 4.1).
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ernie_vilg.config.lora import LoraConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.lora.names import adapter_names, is_adapter


def merged(
    config: ModelConfig, weights: Mapping[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return a model without adapters that computes the same.

    Args:
        config: the model's shape, with or without adapters.
        weights: every parameter by name, whole, float32.

    Returns:
        its shape, and every parameter by name: `W + alpha / rank * B A` for each adapted W.
    """
    result = {name: value for name, value in weights.items() if not is_adapter(name)}
    for layer in config.lora.layers(config.num_layers):
        first, second = (weights[name] for name in adapter_names(layer))
        name = f"{layer}.weight"
        result[name] = result[name] + config.lora.scale * (second @ first)
    return replace(config, lora=LoraConfig()), result
