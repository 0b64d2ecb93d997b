"""The settings that a run was last started with, as its folder records them.

Source: ours.
"""

from pathlib import Path
from typing import Any

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import from_json, map_locations
from ernie_vilg.data.records.ledger import recorded_location
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_object


def write_run(config: PretrainConfig) -> None:
    """Record a run's settings, and where its tokenizers are.

    Local folders are recorded from the root, so that the run can be explained from any folder,
    and URLs without what may be secret in them.
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
    """Read what `write_run` recorded.

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
    """Read the settings that a run was last started with.

    Raises:
        InputError: the folder is no run folder, or the settings are not of this version.
    """
    path = RunFolder(run_dir).settings
    content = read_run(run_dir)
    if "settings" not in content:
        raise InputError(f"{path} has no settings: use the version that the run was started with")
    return from_json(content["settings"], PretrainConfig, f"{path}: settings")
