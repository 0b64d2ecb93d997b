"""The settings of a run's last start, recorded in its folder."""

from pathlib import Path
from typing import Any

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import from_json, map_locations
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.locations import recorded_location


def write_run(config: PretrainConfig) -> None:
    """Record a run's settings and the locations of its tokenizers.

    Local folders are recorded as absolute paths, so that the record holds in any working folder,
    and URLs without the parts that may be secret.
    """
    settings = map_locations(config, recorded_location)
    write_json(
        RunFolder(Path(config.run_dir)).settings,
        {
            "text_tokenizer": settings["data"]["text_tokenizer"],
            "image_tokenizer": settings["data"]["image_tokenizer"],
            "settings": settings,
        },
    )


def read_run(run_dir: Path) -> dict[str, Any]:
    """Read the record that `write_run` wrote.

    Raises:
        InputError: the folder is no run folder, or the record is damaged.
    """
    path = RunFolder(run_dir).settings
    if not path.is_file():
        raise InputError(
            f"{run_dir} has no {path.name}: name the run_dir of a launch/pretrain.py run"
        )
    content = read_object(path)
    for name in ("text_tokenizer", "image_tokenizer"):
        from_json(content.get(name), str, f"{path}: {name}")
    return content


def read_settings(run_dir: Path) -> PretrainConfig:
    """Read the settings of a run's last start.

    Raises:
        InputError: the folder is no run folder, or the settings are not of this version.
    """
    path = RunFolder(run_dir).settings
    content = read_run(run_dir)
    if "settings" not in content:
        raise InputError(f"{path} has no settings: use the version that the run was started with")
    return from_json(content["settings"], PretrainConfig, f"{path}: settings")
