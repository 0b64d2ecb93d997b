"""The frozen image tokenizer as a folder: weights, settings, and the hash that names it.

`image_tokenizer.safetensors` holds float32 weights and, as its metadata, the settings, so that
its SHA-256 names everything on which a code depends. `image_tokenizer.json` holds the settings
and that hash for people and for the check at load.

Source: ours; the weights file is safetensors (https://github.com/huggingface/safetensors).
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import committed_folder, sha256_of_file, write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.vqgan.autoencoder import VQGAN

WEIGHTS_FILE = "image_tokenizer.safetensors"
SETTINGS_FILE = "image_tokenizer.json"
FORMAT = "ernie-vilg image tokenizer 1"


def save_image_tokenizer(model: VQGAN, folder: Path) -> str:
    """Write a tokenizer's folder, replacing one that is there.

    Args:
        model: on any device, in any precision.
        folder: appears when it is complete.

    Returns:
        the weights file's SHA-256.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings = asdict(model.config)
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with committed_folder(folder, replace=True) as temporary:
        weights = temporary / WEIGHTS_FILE
        save_file(tensors, weights, metadata={"config": json.dumps(settings, sort_keys=True)})
        sha256 = sha256_of_file(weights)
        write_json(
            temporary / SETTINGS_FILE, {"format": FORMAT, "config": settings, "sha256": sha256}
        )
    return sha256


def load_image_tokenizer(folder: Path) -> tuple[VQGAN, str]:
    """Load a tokenizer for use: on the CPU, in float32, in evaluation mode, frozen.

    Args:
        folder: written by `save_image_tokenizer`.

    Returns:
        the tokenizer and its SHA-256, the name that token shards record.

    Raises:
        InputError: a file is missing, of another format, or differs from its hash.
    """
    settings = _read_settings(folder)
    weights = folder / WEIGHTS_FILE
    sha256 = sha256_of_file(weights)
    if sha256 != settings["sha256"]:
        raise InputError(
            f"{weights} differs from the SHA-256 in {SETTINGS_FILE}: it is damaged or belongs to "
            "another tokenizer; copy the whole folder again"
        )
    with safe_open(weights, framework="pt", device="cpu") as file:
        recorded = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if recorded != settings["config"]:
        raise InputError(
            f"{folder / SETTINGS_FILE} was edited: its config differs from the one in the weights "
            "file; copy the whole folder again"
        )
    name = f"{weights}: config"
    model = VQGAN(from_json(recorded, ImageTokenizerConfig, name))
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False), sha256


def _read_settings(folder: Path) -> dict[str, Any]:
    for name in (SETTINGS_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}: name a folder written by "
                "launch/train_image_tokenizer.py, such as RUN_DIR/weights"
            )
    settings: dict[str, Any] = read_json(folder / SETTINGS_FILE)
    if settings.get("format") != FORMAT:
        raise InputError(
            f"{folder / SETTINGS_FILE} has format {settings.get('format')!r}, this code reads "
            f"{FORMAT!r}: train the tokenizer again"
        )
    return settings
