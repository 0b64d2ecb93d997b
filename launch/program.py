"""How every program here starts: YAML and command line in, one checked dataclass out.

Hydra composes the settings over a schema made from our dataclasses, so that an unknown or
mistyped key stops the program at once; then Hydra ends, and the program's `main` gets the
frozen dataclass, whose `__post_init__` has checked the values against each other.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ernie_vilg.config.exit_codes import ExitCode, write_ending
from ernie_vilg.config.launch import RendezvousError
from ernie_vilg.errors import InputError
from launch.environment import read_launch

CONF_FOLDER = Path(__file__).resolve().parent.parent / "conf"

_UNQUOTED_VALUE = re.compile(r"[^\[\],{}]*[^\[\],{}\x00-\x7f][^\[\],{}]*")

Config = TypeVar("Config")


def program(
    name: str, schema: type[Config]
) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Turn `main(config)` into a program that reads `conf/<name>.yaml` and the command line.

    Args:
        name: the program's configuration file, without `.yaml`. The file's defaults list
            starts with `<name>_schema`.
        schema: the dataclass that `main` takes.

    Returns:
        a decorator. The decorated `main` takes no arguments; a bad setting prints one
        message and exits with code 2 before anything is started.
    """
    register_schema(name, schema)

    def decorate(main: Callable[[Config], None]) -> Callable[[], None]:
        is_composed = False

        @hydra.main(version_base=None, config_path=str(CONF_FOLDER), config_name=name)
        def compose_and_run(composed: DictConfig) -> None:
            nonlocal is_composed
            is_composed = True
            launch = read_launch()
            logging.basicConfig(  # all but the leader keep silent unless they must not
                level=logging.INFO if launch.is_leader else logging.WARNING,
                format="%(asctime)s %(message)s",
                force=True,
            )
            try:
                main(to_dataclass(composed, schema))
            except RendezvousError as error:
                if launch.local_rank == 0:  # of every machine: the leader may not know
                    print(f"{name}: {error}", file=sys.stderr)
                sys.exit(ExitCode.FAILED)
            except (InputError, OmegaConfBaseException) as error:
                if launch.is_leader:
                    print(f"{name}: {error}", file=sys.stderr)
                write_ending(launch.ending_file, ExitCode.BAD_SETTINGS, f"{name}: {error}")
                sys.exit(ExitCode.BAD_SETTINGS)
            except Exception:
                # Hydra would repeat the command line, in which a URL may hold a password.
                traceback.print_exc()
                sys.exit(ExitCode.FAILED)

        @functools.wraps(main)
        def run() -> None:
            # The deepspeed launcher puts --local_rank=K first, which Hydra cannot parse.
            words = [word for word in sys.argv if not word.startswith("--local_rank")]
            sys.argv = [quote_chinese(word) for word in words]
            try:
                compose_and_run()
            except SystemExit as end:
                # Hydra has said what it cannot compose, and ends as if something had broken.
                if end.code == ExitCode.FAILED and not is_composed:
                    message = f"{name}: no settings, the log of every rank says why"
                    write_ending(read_launch().ending_file, ExitCode.BAD_SETTINGS, message)
                    sys.exit(ExitCode.BAD_SETTINGS)
                raise

        return run

    return decorate


def quote_chinese(word: str) -> str:
    """Put quotes around the values of an override that hold characters beyond ASCII.

    Hydra's grammar takes such characters in quotes only, which a shell eats: without this,
    `prompts=[...]` with a Chinese prompt is a syntax error. A value with an ASCII comma or
    bracket still needs quotes of its own, and a word with any quotes is left as it is.
    """
    name, equals, value = word.partition("=")
    if word.isascii() or not equals or "'" in word or '"' in word:
        return word
    return name + equals + _UNQUOTED_VALUE.sub(r'"\g<0>"', value)


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
