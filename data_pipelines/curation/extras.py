"""Packages that only some rules need, imported when such a rule is on."""

import importlib
from typing import Any

from ernie_vilg.errors import InputError


def import_extra(module: str, *, extra: str, setting: str) -> Any:
    """Return a module of an optional package.

    Args:
        module: its name, such as "rjieba".
        extra: name of the extra that installs it.
        setting: setting that needs it, for the message.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{setting} needs the package {module.partition('.')[0]} ({error}): "
            f"pip install 'ernie-vilg[{extra}]', or leave the setting out"
        ) from error
