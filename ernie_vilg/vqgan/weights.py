"""The folder of a frozen image tokenizer: weights, settings, the hash that identifies it, a card.

`image_tokenizer.safetensors` holds float32 weights and, as metadata, the settings, so that its
SHA-256 covers everything on which a code depends. `image_tokenizer.json` holds the settings, that
hash for the check when it is loaded, and the card; `README.md` holds the card for people.

Source: safetensors (https://github.com/huggingface/safetensors).
"""

import json
from collections.abc import Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ernie_vilg import __version__
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import committed_folder, sha256_of_file, write_bytes, write_json
from ernie_vilg.storage.json_files import object_of, parse_json
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.card import Card, card_from_json, card_text, card_to_json
from ernie_vilg.vqgan.settings_file import (
    FORMAT,
    REMEDY,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    read_settings,
    settings_config,
)

CARD_FILE = "README.md"


def save_image_tokenizer(
    model: VQGAN, folder: Path, *, card: Card | None = None, overwrite: bool = True
) -> str:
    """Write a tokenizer's folder.

    Args:
        model: the tokenizer, on any device and in any precision.
        folder: folder to write; it appears when it is complete.
        card: origin and figures; None: nothing is known. The hash does not cover them.
        overwrite: whether a folder that is there is replaced.

    Returns:
        the weights file's SHA-256.

    Raises:
        InputError: the folder is there and may not be replaced.
    """
    card = card or Card()
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings = asdict(model.config)
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with committed_folder(folder, replace=overwrite) as temporary:
        weights = temporary / WEIGHTS_FILE
        save_file(tensors, weights, metadata={"config": json.dumps(settings, sort_keys=True)})
        sha256 = sha256_of_file(weights)
        content = {
            "format": FORMAT,
            "ernie_vilg_version": __version__,
            "config": settings,
            "sha256": sha256,
            **card_to_json(card),
        }
        write_json(temporary / SETTINGS_FILE, content)
        write_bytes(temporary / CARD_FILE, card_text(card, model.config, sha256).encode())
    return sha256


def load_image_tokenizer(folder: Path) -> tuple[VQGAN, str]:
    """Load a tokenizer for use: on the CPU, in float32, in evaluation mode, frozen.

    Args:
        folder: folder written by `save_image_tokenizer`.

    Returns:
        the tokenizer and its SHA-256, which token shards record.

    Raises:
        InputError: a file is missing, has another format, or differs from its hash.
    """
    settings = read_settings(folder)
    weights = folder / WEIGHTS_FILE
    sha256 = sha256_of_file(weights)
    if sha256 != settings.get("sha256"):
        raise InputError(
            f"{weights} differs from the SHA-256 in {SETTINGS_FILE}: it is damaged or belongs to "
            "another tokenizer; copy the whole folder again"
        )
    recorded, tensors = _read_weights(weights)
    if recorded != settings.get("config"):
        raise InputError(
            f"{folder / SETTINGS_FILE} was edited: its config differs from the one in the weights "
            "file; copy the whole folder again"
        )
    model = VQGAN(from_json(recorded, ImageTokenizerConfig, f"{weights}: config"))
    expected = model.state_dict()
    check_tensors(weights, tensors, expected, required=expected.keys(), remedy=REMEDY)
    model.load_state_dict(tensors)
    # The order of memory in which convolutions are fastest, on CPUs and GPUs.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False), sha256


def read_card(folder: Path) -> Card:
    """Return the card of a tokenizer's folder.

    Raises:
        InputError: a file is missing or has another format.
    """
    settings = read_settings(folder)
    config = settings_config(settings, folder)
    return card_from_json(settings, config, str(folder / SETTINGS_FILE))


def _read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings and the tensors of a weights file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): {REMEDY}") from error
    name = f"{path}: config"
    return object_of(parse_json(metadata.get("config", "null"), name), name), tensors


def check_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    required: Set[str],
    remedy: str,
) -> None:
    """Check names, shapes and values of a weights file against the network that it is for.

    Args:
        path: the file, for messages.
        tensors: tensors of the file by name.
        expected: tensors of the network by name; the file may hold no others.
        required: names that the file must hold.
        remedy: advice at the end of a message.

    Raises:
        InputError: a tensor is missing, unknown, of another shape or not of finite floats.
    """
    if wrong := sorted((required - tensors.keys()) | (tensors.keys() - expected.keys())):
        raise InputError(
            f"{path} is of another network: {len(wrong)} tensors are missing or unknown, such as "
            f"{', '.join(wrong[:3])}; {remedy}"
        )
    for name, value in tensors.items():
        shape, dtype = expected[name].shape, expected[name].dtype
        if value.shape != shape or not value.is_floating_point():
            raise InputError(
                f"{path}: {name} is {value.dtype} {list(value.shape)} where floats {list(shape)} "
                f"belong: {remedy}"
            )
        if not value.to(dtype).isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or infinite values: {remedy}")
