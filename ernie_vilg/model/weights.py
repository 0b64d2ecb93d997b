"""The exported weights folder: how the transformer leaves training and enters use.

    weights/
      model.safetensors    every parameter, whole
      config.json          the model's shape, the step, and the SHA-256 of the file above
      text_tokenizer/      as launch/train_text_tokenizer.py wrote it
      image_tokenizer/     as launch/train_image_tokenizer.py wrote it

Source: ours; safetensors holds no code (https://github.com/huggingface/safetensors).
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig, model_config_from_json
from ernie_vilg.errors import InputError
from ernie_vilg.model.initialization import original_name
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.storage.files import sha256_of_file, write_json
from ernie_vilg.storage.json_files import read_json

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
TEXT_TOKENIZER_FOLDER = "text_tokenizer"
IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
FORMAT_VERSION = 2


def save_weights(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write the model part of a weights folder.

    Args:
        folder: an existing folder.
        config: the model's shape.
        weights: every parameter by name, whole.
        about: JSON values kept in config.json, such as the step.
    """
    path = folder / WEIGHTS_NAME
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    write_json(
        folder / CONFIG_NAME,
        {
            "format_version": FORMAT_VERSION,
            "model": asdict(config),
            "sha256": sha256_of_file(path),
            **about,
        },
    )


def load_weights(folder: Path) -> nn.Sequential:
    """Read the model of a weights folder, ready for use on the CPU, in float32.

    Raises:
        InputError: the folder is incomplete, damaged, or of another format.
    """
    config_path, path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not (config_path.is_file() and path.is_file()):
        raise InputError(
            f"{folder} is no weights folder ({CONFIG_NAME} and {WEIGHTS_NAME} are needed): name "
            "one written by launch/export.py"
        )
    content = read_json(config_path)
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{config_path} has format_version {content.get('format_version')}, this code reads "
            f"{FORMAT_VERSION}: export the run again"
        )
    if sha256_of_file(path) != content["sha256"]:
        raise InputError(f"{path} differs from the SHA-256 in {config_path}: export the run again")
    return model_from_weights(read_model_config(folder), load_file(path))


def read_model_config(folder: Path) -> ModelConfig:
    """Read the model's shape from a weights folder."""
    return model_config_from_json(read_json(folder / CONFIG_NAME)["model"])


def model_from_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> nn.Sequential:
    """Return a model for use, in float32, that holds the given weights.

    Args:
        config: the model's shape.
        weights: every parameter by name, whole.
    """
    with torch.device("meta"):
        model = build_transformer(config)
    state = {
        name: weights[original_name(name, config)].float()
        for name in model.state_dict()  # tied weights are there under both names
    }
    model.load_state_dict(state, assign=True)
    return model.eval()
