"""Adapters as a folder in the layout of the library peft.

    adapter/
      adapter_config.json         rank, alpha, names of the adapted layers
      adapter_model.safetensors   A [rank, in] and B [out, rank] of each

Source: peft 0.21, docs/source/developer_guides/checkpoint.md
(https://github.com/huggingface/peft).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.lora.names import adapter_names
from ernie_vilg.storage.files import write_json

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def save_adapters(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], base: str
) -> None:
    """Write the adapters of a model.

    Args:
        folder: an existing folder.
        config: the model's shape, with adapters.
        weights: every parameter by name, whole.
        base: name of the weights that the adapters belong to, such as their folder.
    """
    layers = config.lora.layers(config.num_layers)
    tensors = {}
    for layer in layers:
        for name, matrix in zip(adapter_names(layer), ("lora_A", "lora_B"), strict=True):
            tensors[f"{_PREFIX}{layer}.{matrix}.weight"] = weights[name].contiguous()
    save_file(tensors, folder / ADAPTER_WEIGHTS_NAME, metadata={"format": "pt"})
    write_json(folder / ADAPTER_CONFIG_NAME, _settings(config, layers, base))


def _settings(config: ModelConfig, layers: list[str], base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": layers,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
