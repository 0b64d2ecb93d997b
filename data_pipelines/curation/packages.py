"""Import of packages that only some rules need."""

import importlib
from typing import Any

from ernie_vilg.errors import InputError


def require(package: str, *, extra: str, setting: str) -> Any:
    """Import a package of an extra.

    Args:
        package: name of the module.
        extra: extra of pyproject.toml that installs it.
        setting: setting that needs it, for the message.

    Raises:
        InputError: the package is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise InputError(
            f"{setting} needs the package {package}: pip install 'ernie-vilg[{extra}]', or turn "
            "the rule off"
        ) from error
