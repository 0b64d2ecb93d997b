"""The pictures that a run drew while it trained, a row for each of some steps.

A file of samples is a grid that has true pictures above drawn ones
(`ernie_vilg.observers.samples`). A strip shows the first true pictures once, and below them the
drawings of each step.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.grid import SAMPLE_COLUMNS, first_row_of_pairs
from ernie_vilg.runs.run_folder import step_in
from ernie_vilg.storage.jsonl import read_lines

_MOST_WIDTH = 1056
"""Pixels of a row's width; wider ones are reduced, so that the page stays small."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Rows of pictures."""

    truth: bytes | None
    """PNG file of the true pictures; None where the rows have them."""
    rows: tuple[tuple[int, bytes], ...]
    """Steps, and the PNG file of each."""
    captions: tuple[tuple[str, str], ...]
    """The data set's captions, and the model's for the same pictures at the last step."""


def evenly_chosen(paths: Sequence[Path], count: int) -> list[Path]:
    """Return at most so many of some files, evenly spread, the first and the last among them."""
    if len(paths) <= count:
        return list(paths)
    if count == 1:
        return [paths[-1]]
    last = len(paths) - 1
    return [paths[round(index * last / (count - 1))] for index in range(count)]


def filmstrip(paths: Sequence[Path], count: int) -> Strip | None:
    """Return the strip of a run's pictures; None without pictures.

    Args:
        paths: grids, named by their steps, the first step first. Beside samples lies a .jsonl file
            with a line per pair.
        count: largest number of steps.

    Raises:
        InputError: a file is no picture.
    """
    chosen = evenly_chosen([path for path in paths if step_in(path.stem) is not None], count)
    if not chosen:
        return None
    truth, rows = None, []
    for path in chosen:
        true, drawn = _first_row(_open(path), len(_captions(path)))
        truth = None if true is None else _png(true)
        rows.append((step_in(path.stem) or 0, _png(drawn)))
    return Strip(
        truth=truth, rows=tuple(rows), captions=tuple(_captions(chosen[-1])[:SAMPLE_COLUMNS])
    )


def _first_row(grid: Image.Image, num_pairs: int) -> tuple[Image.Image | None, Image.Image]:
    """Return the first true pictures and their drawings; the whole grid if it has another form."""
    found = first_row_of_pairs(grid, num_pairs, columns=SAMPLE_COLUMNS) if num_pairs else None
    return (None, grid) if found is None else found


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise InputError(
            f"{path} is no readable picture ({error}): restore or remove it"
        ) from error


def _png(picture: Image.Image) -> bytes:
    if picture.width > _MOST_WIDTH:
        height = max(1, round(picture.height * _MOST_WIDTH / picture.width))
        picture = picture.resize((_MOST_WIDTH, height), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, format="png")
    return content.getvalue()


def _captions(path: Path) -> list[tuple[str, str]]:
    """Return true and written captions of a file of samples; none beside other pictures."""
    lines = path.with_suffix(".jsonl")
    records = [line.require() for line in read_lines(lines)] if lines.is_file() else []
    return [(str(each.get("caption")), str(each.get("written"))) for each in records]
