"""Groups of settings in `conf/`, and what each file of a group is for."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launch.support.places import CONF_FOLDER

_END = re.compile(r"(?<=\.) |: (?=(?:python|deepspeed|torchrun|sbatch|ernie-vilg) )")
"""End of a comment's first sentence, or the beginning of a command in it."""


def groups_of(name: str) -> dict[str, str | None]:
    """Return the groups of a program with the default choice: "???" must be chosen, None is none.

    Args:
        name: program name.
    """
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF_FOLDER / f"{name}.yaml"))
    entries = [entry for entry in content["defaults"] if isinstance(entry, dict)]
    return {group: chosen for entry in entries for group, chosen in entry.items()}


def choices_of(group: str) -> dict[str, str]:
    """Return the choices of a group with a sentence about each, in the order of their names."""
    files = sorted((CONF_FOLDER / group).glob("*.yaml"))
    return {file.stem: first_sentence(file) for file in files}


def first_sentence(file: Path) -> str:
    """Return the first sentence of the comment that a YAML file begins with, without its stop."""
    text = " ".join(_comment(file.read_text(encoding="utf-8")))
    return _END.split(text)[0].rstrip(".")


def _comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        if not line.startswith("# @package"):
            yield line.removeprefix("#").strip()
