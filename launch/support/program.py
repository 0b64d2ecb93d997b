"""How every program here starts: YAML and command line in, one checked dataclass out.

Hydra composes the settings over a schema made from our dataclasses, so that an unknown or
mistyped key stops the program at once; the program's `main` gets the frozen dataclass, whose
`__post_init__` has checked the values.

Source: ours, on Hydra's structured configs (https://hydra.cc).
"""

import dataclasses
import functools
import logging
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ernie_vilg.config.exit_codes import ExitCode, write_ending
from ernie_vilg.config.launch import Launch, RendezvousError
from ernie_vilg.config.schema import FORMER_NAMES
from ernie_vilg.errors import InputError
from launch.support.environment import (
    ending_file,
    prepare_process,
    read_launch,
    require_one_process,
)
from launch.support.help import help_text
from launch.support.overrides import hydra_overrides, in_optional_sections

CONF_FOLDER = Path(__file__).resolve().parents[2] / "conf"

_ADVICE = re.compile(
    r"To append to your config|object_type=|reference_type=|See https?:|Config search|provider="
)
"""Lines of Hydra and OmegaConf that help nobody at a command line."""

Config = TypeVar("Config")


def program(
    name: str, schema: type[Config], *, has_ranks: bool = False
) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Turn `main(config)` into a program that reads `conf/<name>.yaml` and the command line.

    Args:
        name: the program's configuration file, without `.yaml`. The file's defaults list
            starts with `<name>_schema`.
        schema: the dataclass that `main` takes.
        has_ranks: whether launchers start several processes of it, of which the leader speaks. A
            program of one process speaks always, whatever a launcher left in the environment;
            a launcher that starts several of it is refused, as all would write the same files.

    Returns:
        a decorator. The decorated `main` takes no arguments; a bad setting prints one
        message and exits with code 2 before anything is started.
    """
    register_schema(name, schema)

    def decorate(main: Callable[[Config], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def run() -> None:
            # The deepspeed launcher puts --local_rank=K first.
            words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
            launch = Launch(rank=0, local_rank=0, world_size=1)
            try:
                prepare_process()
                if "--help" in words or "-h" in words:
                    print(help_text(name, schema, main.__doc__ or ""))
                    return
                if has_ranks:
                    launch = read_launch()
                else:
                    require_one_process(name)
                _start_log(launch)
                settings = _without_cfg(words)
                if settings != words:
                    print(OmegaConf.to_yaml(compose(name, schema, settings)))
                    return
                main(to_dataclass(compose(name, schema, words), schema))
            except Exception as error:
                sys.exit(_report(name, launch, error))

        return run

    return decorate


def _without_cfg(words: list[str]) -> list[str]:
    """Return the words of a command line without --cfg job, wherever it stands."""
    for at, word in enumerate(words):
        if words[at : at + 2] == ["--cfg", "job"]:
            return words[:at] + words[at + 2 :]
        if word == "--cfg=job":
            return words[:at] + words[at + 1 :]
    return words


def _start_log(launch: Launch) -> None:
    logging.basicConfig(  # all but the leader keep silent unless they must not
        level=logging.INFO if launch.is_leader else logging.WARNING,
        format="%(asctime)s %(message)s",
        force=True,
    )


def _report(name: str, launch: Launch, error: Exception) -> ExitCode:
    """Say how a program fails; return its exit code."""
    message = f"{name}: {_said(error)}"
    if isinstance(error, RendezvousError):
        if launch.local_rank == 0:  # of every machine: the leader may not know
            print(message, file=sys.stderr)
        return ExitCode.FAILED
    if isinstance(error, InputError | OmegaConfBaseException):
        if launch.is_leader:
            print(message, file=sys.stderr)
        write_ending(ending_file(), ExitCode.BAD_SETTINGS, message)
        return ExitCode.BAD_SETTINGS
    traceback.print_exception(error)
    return ExitCode.FAILED


def compose(name: str, schema: type, words: Sequence[str]) -> DictConfig:
    """Lay the words of a command line over `conf/<name>.yaml` and the schema.

    Raises:
        InputError: a word names no setting, or gives one a value of another type.
    """
    if any("\0" in word for word in words):
        raise InputError("a word of the command line has a null character: leave it out")
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir=str(CONF_FOLDER), version_base=None):
            return hydra.compose(config_name=name, overrides=hydra_overrides(words, schema))
    except OverrideParseException as error:
        raise InputError(
            f"{error.override}: cannot be read ({_said(error)}): close every bracket, and quote a "
            "text in which there are brackets, commas or colons"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"{_said(error)}{_renamed(words)}") from error
    except AssertionError as error:  # OmegaConf's only word about it
        suspects = in_optional_sections(words, schema)
        if not suspects:
            raise
        raise InputError(
            f"{' '.join(suspects)}: this section is null and has no keys: choose its file first, "
            "such as gpu=h100-80gb or cluster=slurm, or leave this out"
        ) from error


def _renamed(words: Sequence[str]) -> str:
    """Return an ending of a message that says which settings have another name now."""
    names = {part for word in words for part in word.partition("=")[0].split(".")}
    return "".join(f"; {old} is now {now}" for old, now in FORMER_NAMES.items() if old in names)


def _said(error: BaseException) -> str:
    """Return the message of an error; of one of Hydra's, with its cause and without its advice."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return str(error)
    lines = [
        line.strip() for said in (error, error.__cause__) if said for line in f"{said}".split("\n")
    ]
    lines = [line for line in lines if not _ADVICE.match(line)]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def register_schema(name: str, schema: type) -> None:
    """Make `<name>_schema` known to Hydra's defaults lists."""
    ConfigStore.instance().store(name=f"{name}_schema", node=_mutable_twin(schema))


def to_dataclass(composed: DictConfig, schema: type[Config]) -> Config:
    """Turn Hydra's composed settings into the frozen dataclass, running its checks.

    Raises:
        InputError: a check in a `__post_init__` failed.
        OmegaConfBaseException: a required key has no value.
    """
    return typing.cast(Config, _freeze(OmegaConf.to_object(composed), schema))


@functools.cache
def _mutable_twin(schema: type) -> type:
    """Return the same dataclass without `frozen` and checks.

    OmegaConf makes a node from a frozen dataclass read-only, so that Hydra cannot lay YAML
    and command line over it.
    """
    hints = typing.get_type_hints(schema)
    fields = [
        (field.name, _twin_type(hints[field.name]), _twin_default(field))
        for field in dataclasses.fields(schema)
    ]
    return dataclasses.make_dataclass(schema.__name__, fields, kw_only=True)


def _twin_type(hint: Any) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _mutable_twin(hint)
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return type(arguments[0])
    if not arguments:
        return hint
    if origin is types.UnionType:
        origin = typing.Union
    return origin[tuple(_twin_type(argument) for argument in arguments)]


def _twin_default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    if field.default_factory is dataclasses.MISSING:
        return dataclasses.field(default=MISSING)
    factory = field.default_factory
    if isinstance(factory, type) and dataclasses.is_dataclass(factory):
        return dataclasses.field(default_factory=_mutable_twin(factory))
    return dataclasses.field(default_factory=factory)


def _freeze(value: Any, hint: Any) -> Any:
    """Rebuild a value of twin dataclasses, lists and dicts of frozen dataclasses and tuples."""
    if isinstance(hint, types.UnionType) and value is not None:  # such as `Settings | None`
        hint = next((part for part in typing.get_args(hint) if dataclasses.is_dataclass(part)), Any)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        if not dataclasses.is_dataclass(value):
            raise InputError(f"{value!r} stands where the settings of {hint.__name__} belong")
        for name in sorted(vars(value).keys() - hints.keys()):
            # Hydra adds whatever a + stands before, and OmegaConf makes it an attribute.
            raise InputError(f"Key '{name}' not in '{hint.__name__}': leave out +{name}")
        return hint(
            **{
                field.name: _freeze(getattr(value, field.name), hints[field.name])
                for field in dataclasses.fields(hint)
            }
        )
    arguments = typing.get_args(hint) or (Any, Any)
    if isinstance(value, list):
        return tuple(_freeze(item, arguments[0]) for item in value)
    if isinstance(value, dict):
        return {key: _freeze(item, arguments[1]) for key, item in value.items()}
    return value
