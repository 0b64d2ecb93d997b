"""What a run folder says of itself.

Source: ours.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.ledger import recorded_location
from ernie_vilg.files import read_json, write_json

RUN_NAME = "run.json"

Settings = TypeVar("Settings")


def write_run(config: PretrainConfig) -> None:
    """Record a run's settings, and where its tokenizers are.

    Local folders are recorded from the root, so that the run can be explained from any folder,
    and URLs without what may be secret in them.
    """
    settings = _as_recorded(asdict(config))
    write_json(
        Path(config.run_dir) / RUN_NAME,
        {
            "text_tokenizer": settings["data"]["text_tokenizer"],
            "image_tokenizer": settings["data"]["image_tokenizer"],
            "settings": settings,
        },
    )


def read_run(run_dir: Path) -> dict[str, Any]:
    """Read what `write_run` recorded.

    Raises:
        ValueError: the folder is no run folder.
    """
    path = run_dir / RUN_NAME
    if not path.is_file():
        raise ValueError(
            f"{run_dir} has no {RUN_NAME}: name the run_dir of a launch/pretrain.py run"
        )
    content: dict[str, Any] = read_json(path)
    return content


def read_settings(run_dir: Path) -> PretrainConfig:
    """Read the settings that a run was last started with.

    Raises:
        ValueError: the folder is no run folder, or the settings are not of this version.
    """
    path = run_dir / RUN_NAME
    try:
        return from_json(read_run(run_dir)["settings"], PretrainConfig)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold the settings of a run of this version ({error}): use the "
            "version that the run was started with"
        ) from error


def from_json(content: Mapping[str, Any], schema: type[Settings]) -> Settings:
    """Undo `dataclasses.asdict`, JSON having made lists of tuples in between.

    Args:
        content: JSON values by the names of the dataclass's fields. Fields that are not there take
            their defaults: settings of before there was such a field.
        schema: the dataclass; its fields may be dataclasses, tuples, mappings and optional.

    Raises:
        TypeError: a field is unknown, or has no value and no default.
        ValueError: a check of a dataclass failed.
    """
    value: Settings = _value(content, schema)
    return value


def _value(value: Any, hint: Any) -> Any:
    if value is None:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (hint,) = [part for part in arguments if part is not types.NoneType]
        return _value(value, hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise TypeError(f"{hint.__name__} has no {', '.join(unknown)}")
        return hint(**{name: _value(part, hints[name]) for name, part in value.items()})
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: _value(part, arguments[1]) for name, part in value.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        each = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
        return tuple(_value(part, of) for part, of in zip(value, each, strict=True))
    return value


def _as_recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings with every location as it is written down."""
    data, samples = settings["data"], settings["samples"]
    places: list[tuple[dict[str, Any], str]] = [
        (settings, "run_dir"),
        *((data, name) for name in ("token_shards", "text_tokenizer", "image_tokenizer")),
        *((data_set, "token_shards") for data_set in data["mixture"].values()),
        (data["loader"], "cache_dir"),
        (samples, "pairs"),
        (settings["health"], "pairs"),
    ]
    for group, name in places:
        if group[name] is not None:
            group[name] = recorded_location(group[name])
    return settings
