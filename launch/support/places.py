"""Folders of the programs and their settings: in a checkout, or in an installed wheel.

`launch/conf` is a link to `conf/` in a checkout, and a folder of the package in a wheel.
"""

from pathlib import Path

PROGRAMS_FOLDER = Path(__file__).resolve().parents[1]
"""Folder of the programs."""
CONF_FOLDER = (PROGRAMS_FOLDER / "conf").resolve()
"""Folder of the YAML files: `conf/` of the repository, or `launch/conf/` of the wheel."""


def program_path(word: str, folder: Path) -> str:
    """Return a word of a command; a program's file, such as launch/pretrain.py, as it is found.

    Args:
        word: any argument of a command.
        folder: working folder of the command. A program that it lacks becomes an absolute path.
    """
    parts = Path(word).parts
    installed = PROGRAMS_FOLDER.joinpath(*parts[1:])
    is_program = parts[:1] == (PROGRAMS_FOLDER.name,) and installed.suffix == ".py"
    if is_program and installed.is_file() and not (folder / word).is_file():
        return str(installed)
    return word


def has_settings(name: str) -> bool:
    """Return whether a program takes settings of `conf/`, rather than flags."""
    return (CONF_FOLDER / f"{name}.yaml").is_file()
