"""A line of the metrics file as the named figures and pictures that every tracker gets alike."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_NO_FIGURES = ("step", "pictures")


class Picture(NamedTuple):
    """A picture of a line, whose file exists."""

    name: str
    """Name that it is tracked under."""
    path: Path
    """File in the run folder."""
    caption: str | None
    """Text below it."""


def figures_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a line by name.

    A list becomes a figure for each of its values, `name/00` and so on; nulls are dropped.
    """
    figures: dict[str, float] = {}
    for name, value in entry.items():
        if name in _NO_FIGURES:
            continue
        if isinstance(value, list):
            digits = len(str(len(value) - 1))
            figures |= {
                f"{name}/{index:0{digits}}": part
                for index, part in enumerate(value)
                if part is not None
            }
        elif value is not None:
            figures[name] = value
    return figures


def pictures_of(entry: Mapping[str, Any], run_dir: Path) -> Iterator[Picture]:
    """Yield the pictures of a line whose files are in the run folder."""
    for name, picture in entry.get("pictures", {}).items():
        path = run_dir / picture["file"]
        if path.is_file():
            yield Picture(name, path, picture.get("caption"))
