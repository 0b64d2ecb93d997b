"""The settings of a frozen image tokenizer's folder, read without its weights and without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import read_object

WEIGHTS_FILE = "image_tokenizer.safetensors"
SETTINGS_FILE = "image_tokenizer.json"
FORMAT = "ernie-vilg image tokenizer 2"
REMEDY = "train or import the tokenizer again"


def read_config(folder: Path) -> ImageTokenizerConfig:
    """Return the architecture that a tokenizer's folder records; its weights are not compared.

    Raises:
        InputError: a file is missing or has another format.
    """
    return settings_config(read_settings(folder), folder)


def settings_config(settings: Mapping[str, Any], folder: Path) -> ImageTokenizerConfig:
    """Return the architecture in the content of a settings file.

    Raises:
        InputError: it is not one.
    """
    name = f"{folder / SETTINGS_FILE}: config"
    return from_json(settings.get("config"), ImageTokenizerConfig, name)


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the content of a tokenizer's settings file.

    Raises:
        InputError: a file is missing or has another format.
    """
    for name in (SETTINGS_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}: name a folder written by "
                "launch/train_image_tokenizer.py, such as RUN_DIR/weights, or by "
                "launch/import_image_tokenizer.py"
            )
    settings = read_object(folder / SETTINGS_FILE)
    if settings.get("format") != FORMAT:
        raise InputError(
            f"{folder / SETTINGS_FILE} has format {settings.get('format')!r}, this code reads "
            f"{FORMAT!r}, whose layers differ: {REMEDY}"
        )
    return settings
