"""Packages that only some rules need, imported when such a rule is on."""

import importlib
import importlib.util
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
        raise _missing(module, extra, setting, f" ({error})") from error


def require_extra(module: str, *, extra: str, setting: str) -> None:
    """Check that an optional package is installed, without the time that its import takes.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, extra, setting, "")


def _missing(module: str, extra: str, setting: str, why: str) -> InputError:
    return InputError(
        f"{setting} needs the package {module.partition('.')[0]}{why}: "
        f"pip install 'ernie-vilg[{extra}]', or leave the setting out"
    )
