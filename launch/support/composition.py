"""The settings of a command, composed without running it.

The main job compares them to find stages whose settings changed; the tests compose every command in
the documents.
"""

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from ernie_vilg.errors import InputError
from launch.support.followed import follow_tokenizers
from launch.support.places import has_settings
from launch.support.program import compose, to_dataclass

_MODULE_FLAGS = ("-m", "--module")
"""Flags of launchers before a module's name."""


def compose_program(name: str, overrides: Sequence[str]) -> Any:
    """Compose and check the settings of `launch/<name>.py`.

    Args:
        name: file name of the program, without suffix.
        overrides: options of its command line, such as ["experiment=quickstart"].

    Returns:
        the frozen dataclass that the program's `main` would get.

    Raises:
        InputError: the program does not exist, or would refuse the settings.
    """
    schema = schema_of(name)
    try:
        composed = compose(name, schema, overrides)
        follow_tokenizers(composed, schema)
        return to_dataclass(composed, schema)
    except (OmegaConfBaseException, InputError) as error:
        line = " ".join(overrides)
        raise InputError(f"launch/{name}.py {line}: it refuses these settings: {error}") from error


def schema_of(name: str) -> Any:
    """Return the dataclass of the settings of `launch/<name>.py`.

    Raises:
        InputError: the program does not exist.
    """
    try:
        module = importlib.import_module(f"launch.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"launch.{name}":
            raise
        raise InputError(f"launch/{name}.py does not exist: name a program in launch/") from error
    main = inspect.unwrap(module.main)
    (schema,) = [hint for key, hint in typing.get_type_hints(main).items() if key != "return"]
    return schema


def program_of(command: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the program of launch/ that a command runs, under any launcher, and its options.

    The program is a file, a module (`torchrun -m launch.pretrain`) or a command of `ernie-vilg`.

    Returns:
        program name and options; None when the command runs no program of launch/.
    """
    for index, argument in enumerate(command):
        path, options = PurePosixPath(argument), list(command[index + 1 :])
        if path.suffix == ".py" and path.parent.name == "launch":
            return path.stem, options
        if argument in _MODULE_FLAGS and options[:1] and options[0].startswith("launch."):
            name, options = options[0].removeprefix("launch."), options[1:]
        elif path.name == "ernie-vilg" and options:
            name, options = options[0].replace("-", "_"), options[1:]
        else:
            continue
        if has_settings(name):  # not a supervisor, after which the program's command follows
            return name, options
    return None


def settings_of(command: Sequence[str]) -> dict[str, Any] | None:
    """Return the composed settings of a command as JSON values; None for other programs."""
    found = program_of(command)
    if found is None:
        return None
    return dataclasses.asdict(compose_program(*found))
