"""The settings of a run's last start, recorded in its folder."""

from pathlib import Path
from typing import Any, TypeVar

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.run import RunConfig
from ernie_vilg.config.schema import from_json, map_locations
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.locations import recorded_location

_PROGRAMS: dict[type, str] = {
    PretrainConfig: "pretrain",
    TrainImageTokenizerConfig: "train_image_tokenizer",
}
"""Programs that train, without launch/ and .py, by the settings of their runs."""

Config = TypeVar("Config", bound=RunConfig)


def write_run(config: RunConfig) -> None:
    """Record a run's settings, its program, and the locations of its tokenizers.

    Local folders are recorded as absolute paths, so that the record holds in any working folder,
    and URLs without the parts that may be secret.
    """
    settings = map_locations(config, recorded_location)
    tokenizers = {}
    if isinstance(config, PretrainConfig):
        tokenizers = {
            "text_tokenizer": settings["data"]["text_tokenizer"],
            "image_tokenizer": settings["data"]["image_tokenizer"],
        }
    write_json(
        RunFolder(Path(config.run_dir)).settings,
        {"program": _PROGRAMS[type(config)], **tokenizers, "settings": settings},
    )


def program_of(run_dir: Path) -> str:
    """Return the program of a run: pretrain or train_image_tokenizer.

    Raises:
        InputError: the folder is no run folder, or the record is damaged.
    """
    # Older records have no program: only launch/pretrain.py wrote any.
    program = _read(run_dir).get("program", _PROGRAMS[PretrainConfig])
    if program not in _PROGRAMS.values():
        raise InputError(
            f"{RunFolder(run_dir).settings}: program is {program!r:.80}, which this version does "
            "not know: use the version that the run was started with"
        )
    return str(program)


def read_run(run_dir: Path) -> dict[str, Any]:
    """Read the record that `write_run` wrote of a pretraining run.

    Raises:
        InputError: the folder is no such run's folder, or the record is damaged.
    """
    content = _read_run_of(run_dir, PretrainConfig)
    for name in ("text_tokenizer", "image_tokenizer"):
        from_json(content.get(name), str, f"{RunFolder(run_dir).settings}: {name}")
    return content


def read_settings(run_dir: Path, schema: type[Config]) -> Config:
    """Read the settings of a run's last start.

    Args:
        run_dir: the run's folder.
        schema: settings of the program that trains it.

    Raises:
        InputError: the folder is no run folder or one of another program, or the settings are not
            of this version.
    """
    path = RunFolder(run_dir).settings
    content = read_run(run_dir) if schema is PretrainConfig else _read_run_of(run_dir, schema)
    if "settings" not in content:
        raise InputError(f"{path} has no settings: use the version that the run was started with")
    return from_json(content["settings"], schema, f"{path}: settings")


def _read(run_dir: Path) -> dict[str, Any]:
    path = RunFolder(run_dir).settings
    if not path.is_file():
        raise InputError(
            f"{run_dir} has no {path.name}: name the run_dir of a launch/pretrain.py run"
        )
    return read_object(path)


def _read_run_of(run_dir: Path, schema: type[RunConfig]) -> dict[str, Any]:
    """Read the record of a run, unless it is one of another program."""
    program = program_of(run_dir)
    if program != _PROGRAMS[schema]:
        raise InputError(
            f"{run_dir} is a run of launch/{program}.py where one of launch/{_PROGRAMS[schema]}.py "
            "belongs: name another run folder"
        )
    return _read(run_dir)
