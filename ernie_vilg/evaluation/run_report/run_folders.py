"""Run folders of a page, from paths and patterns, and the short names that tell them apart."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.charts import MOST_LINES
from ernie_vilg.runs.run_folder import RunFolder


def run_folders(places: Sequence[str]) -> list[Path]:
    """Return the run folders that places name, in their order.

    Args:
        places: folders, and patterns such as `outputs/rates/*`, which name the run folders that
            match, sorted; other folders and files that match are passed over.

    Raises:
        InputError: a place is no run folder, a pattern matches none, one run is named twice, or
            they are more than a chart tells apart.
    """
    found = [folder for place in places for folder in _folders_of(place)]
    names: dict[str, Path] = {}
    for folder in found:
        real = os.path.realpath(folder)
        if real in names:
            raise InputError(
                f"runs names one run twice, as {names[real]} and as {folder}: name it once"
            )
        names[real] = folder
    if len(found) > MOST_LINES:
        raise InputError(
            f"runs names {len(found)} runs: a chart tells {MOST_LINES} lines apart, name at most "
            "so many. A sweep of any size has a page of its own, sweep.html in its folder"
        )
    return found


def _folders_of(place: str) -> list[Path]:
    folder = Path(place)
    if folder.is_dir():
        return [_checked(folder)]
    if not glob.has_magic(place):
        raise InputError(f"runs: {place} is not a folder: name the run_dir of a training run")
    matches = [Path(each) for each in sorted(glob.glob(place))]
    runs = [each for each in matches if RunFolder(each).settings.is_file()]
    if not runs:
        raise InputError(f"runs: no run folder matches {place}: name run folders, or their pattern")
    return runs


def _checked(folder: Path) -> Path:
    """Return a run folder; refuse another one, with a hint where its subfolders are runs."""
    settings = RunFolder(folder).settings
    if settings.is_file():
        return folder
    if any(RunFolder(each).settings.is_file() for each in folder.iterdir()):
        raise InputError(
            f"runs: {folder} is no run folder, but has run folders in it: name them, as in "
            f"'runs=[{folder}/*]' with the quotation marks"
        )
    raise InputError(
        f"runs: {folder} has no {settings.name}: name the run_dir of launch/pretrain.py or "
        "launch/train_image_tokenizer.py"
    )


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return names that tell folders apart: their paths without the parts that all share.

    Args:
        folders: different folders; the only one is named by the last two parts of its path.
    """
    paths = [Path(os.path.abspath(folder)).parts[1:] for folder in folders]
    if len(paths) == 1:
        return ["/".join(paths[0][-2:])]
    first = _shared(paths)
    last = _shared([parts[first:][::-1] for parts in paths])
    names = ["/".join(parts[first : len(parts) - last]) or parts[-1] for parts in paths]
    return names if len(set(names)) == len(names) else ["/".join(parts) for parts in paths]


def _shared(paths: Sequence[Sequence[str]]) -> int:
    """Return the number of leading parts that all paths share."""
    shared = 0
    while all(len(parts) > shared for parts in paths):
        if len({parts[shared] for parts in paths}) > 1:
            break
        shared += 1
    return shared
