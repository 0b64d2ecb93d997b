"""The exported weights folder, which programs outside training read.

    weights/
      model.safetensors    every parameter, whole
      config.json          the model's shape, the step, our version, the SHA-256 of all files
      text_tokenizer/      as launch/train_text_tokenizer.py or import_text_tokenizer.py wrote it
      image_tokenizer/     as launch/train_image_tokenizer.py wrote it

Source: safetensors holds no code (https://github.com/huggingface/safetensors).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ernie_vilg import __version__
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.model.initialization import original_name
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.storage.files import sha256_of_file, sha256_of_json, write_json
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.vqgan.weights import check_tensors

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
TEXT_TOKENIZER_FOLDER = "text_tokenizer"
IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
FORMAT_VERSION = 3
_OWN_HASH = "sha256"


def save_weights(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write the model of a weights folder, and hashes of all files, so its tokenizers come first.

    Args:
        folder: an existing folder that contains the tokenizers.
        config: the model's shape.
        weights: every parameter by name, whole.
        about: JSON values kept in config.json, such as the step.
    """
    path = folder / WEIGHTS_NAME
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    content = {
        "format_version": FORMAT_VERSION,
        "ernie_vilg_version": __version__,
        "model": asdict(config),
        **about,
        "files": {
            str(file.relative_to(folder)): sha256_of_file(file)
            for file in files
            if file != folder / CONFIG_NAME
        },
    }
    content = json.loads(json.dumps(content))  # hash the values that a reader sees: no tuples
    write_json(folder / CONFIG_NAME, {**content, _OWN_HASH: sha256_of_json(content)})


def load_weights(
    folder: Path,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> tuple[ModelConfig, nn.Sequential]:
    """Verify a weights folder and read its model, ready for use.

    Args:
        folder: folder written by launch/export.py.
        device: device of the model.
        precision: data type of its weights.

    Returns:
        the model's shape, and the model.

    Raises:
        InputError: the folder is incomplete, damaged, or of another format.
    """
    config, weights = read_weights(folder)
    return config, model_from_weights(config, weights, device, precision)


def read_weights(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Verify a weights folder and read its model's shape and every whole parameter by name.

    Raises:
        InputError: the folder is incomplete, damaged, or of another format.
    """
    config, path = read_model_config(folder), folder / WEIGHTS_NAME
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): export the run again") from error
    with torch.device("meta"):
        expected = build_transformer(config).state_dict()
    required = {original_name(name, config) for name in expected}
    check_tensors(path, weights, expected, required=required, remedy="export the run again")
    return config, weights


def read_model_config(folder: Path) -> ModelConfig:
    """Verify a weights folder and read the model's shape from it.

    Raises:
        InputError: the folder is incomplete, damaged, or of another format.
    """
    path = folder / CONFIG_NAME
    if not (path.is_file() and (folder / WEIGHTS_NAME).is_file()):
        raise InputError(
            f"{folder} is no weights folder ({CONFIG_NAME} and {WEIGHTS_NAME} are needed): name "
            "one written by launch/export.py"
        )
    content = read_object(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {content.get('format_version')}, this code reads "
            f"{FORMAT_VERSION}: export the run again"
        )
    own_hash = content.pop(_OWN_HASH, None)
    if own_hash != sha256_of_json(content):
        raise InputError(f"{path} differs from its own SHA-256: export the run again")
    files = content.get("files")
    if not isinstance(files, dict) or WEIGHTS_NAME not in files:
        raise InputError(f"{path} does not list {WEIGHTS_NAME}: export the run again")
    for name, sha256 in files.items():
        file = folder / name
        if not file.is_file() or sha256_of_file(file) != sha256:
            raise InputError(
                f"{file} is missing or differs from the SHA-256 in {CONFIG_NAME}: copy the whole "
                "folder or export the run again"
            )
    return from_json(content.get("model"), ModelConfig, f"{path}: model")


def model_from_weights(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Return a model in evaluation mode with the given weights.

    Weights move one by one, so that no second whole copy exists on the way.

    Args:
        config: the model's shape.
        weights: every parameter by name, whole.
        device: device of the model.
        precision: data type of its weights.
    """
    with torch.device("meta"):
        model = build_transformer(config)
    names = {name: original_name(name, config) for name in model.state_dict()}
    moved = {name: weights[name].to(device, precision) for name in dict.fromkeys(names.values())}
    state = {name: moved[original] for name, original in names.items()}  # tied ones have two names
    model.load_state_dict(state, assign=True)
    return model.to(device).eval()  # masks too, which are no weights
