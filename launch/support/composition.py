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
from launch.support.program import compose, to_dataclass


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
    try:
        module = importlib.import_module(f"launch.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"launch.{name}":
            raise
        raise InputError(f"launch/{name}.py does not exist: name a program in launch/") from error
    main = inspect.unwrap(module.main)
    (schema,) = [hint for key, hint in typing.get_type_hints(main).items() if key != "return"]
    try:
        return to_dataclass(compose(name, schema, overrides), schema)
    except (OmegaConfBaseException, InputError) as error:
        line = " ".join(overrides)
        raise InputError(f"launch/{name}.py {line}: it refuses these settings: {error}") from error


def program_of(command: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the program of launch/ that a command runs, under any launcher, and its options.

    Returns:
        program name and options; None when the command runs no program of launch/.
    """
    for index, argument in enumerate(command):
        path = PurePosixPath(argument)
        if path.suffix == ".py" and path.parent.name == "launch":
            return path.stem, list(command[index + 1 :])
    return None


def settings_of(command: Sequence[str]) -> dict[str, Any] | None:
    """Return the composed settings of a command as JSON values; None for other programs."""
    found = program_of(command)
    if found is None:
        return None
    return dataclasses.asdict(compose_program(*found))
