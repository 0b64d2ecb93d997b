"""Recognition of the layout of a source by the files that are there."""

import json
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.sources import scenes
from data_pipelines.sources.caption_lists import is_caption_line, is_caption_list
from data_pipelines.sources.captions_file import CAPTIONS_FILE
from data_pipelines.sources.coco import MAX_FILE_BYTES, is_coco
from data_pipelines.sources.places import Place
from data_pipelines.sources.questions import is_question_lists
from ernie_vilg.config.shards import Layout
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.storage.jsonl import read_raw_lines
from ernie_vilg.storage.locations import shown
from ernie_vilg.storage.shard_manifest import FILE_NAME as MANIFEST

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES: dict[str, Layout] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
"""Layouts of tables by the file's extension."""

_OF_FOLDERS: tuple[Layout, ...] = ("captions", "image_folder", "img2dataset", "parquet")
_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_MOST_FOLDERS = 100
_TEXTS = (".csv", ".tsv", ".jsonl", ".json", ".txt")
_MAX_SHOWN = 8
_FIRST_BYTES = 4096
_LAYOUTS = (
    "a folder with captions.jsonl (captions), metadata.csv, .jsonl or .parquet (image_folder), "
    "tar files (img2dataset), Parquet files (parquet) or manifest.json (image_shards); or a file: "
    ".csv, .tsv, .jsonl or .parquet with image_key and caption_key, a .json of COCO (coco), a "
    ".json or .txt of AIC-ICC or COCO-CN (caption_lists), a .json of FM-IQA (question_answers), "
    "00000.tar (img2dataset)"
)


def recognise(place: Place, work: Path) -> tuple[Layout, tuple[str, ...]]:
    """Return the layout of a source and the files to read.

    Args:
        place: where it is.
        work: folder for copies of remote files.

    Raises:
        InputError: it is of no known layout, or of several; the message says what was found.
    """
    names = list(place.files) if place.files else place.names()
    if MANIFEST in names:  # its shards are tar files
        return "image_shards", (MANIFEST,)
    found: dict[Layout, tuple[str, ...]] = {
        layout: files for layout in _OF_FOLDERS if (files := files_of(layout, names))
    }
    if "img2dataset" in found:  # each tar file has a Parquet file beside it
        found.pop("parquet", None)
    rest = [name for name in names if Path(name).suffix in _TEXTS]
    if not found and len(rest) == 1:
        of_file = _layout_of_file(place, rest[0], work)
        if of_file is not None:
            return of_file, (rest[0],)
    if len(found) != 1:
        raise _unknown(place, names, list(found), work)
    return next(iter(found.items()))


def files_of(layout: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the files that a layout reads, among those of a folder; none if it does not fit."""
    match layout:
        case "image_shards":
            return tuple(name for name in names if name == MANIFEST)
        case "captions":
            return tuple(name for name in names if name == CAPTIONS_FILE)
        case "image_folder":
            return tuple(name for name in names if name in METADATA_FILES)
        case "img2dataset":
            return tuple(name for name in names if name.endswith(".tar"))
        case "coco" | "question_answers":
            return tuple(name for name in names if name.endswith(".json"))
        case "caption_lists":
            return tuple(name for name in names if name.endswith((".json", ".txt")))
        case _:
            return tuple(
                name for name in names if name.endswith(f".{layout}") and name not in METADATA_FILES
            )


def _layout_of_file(place: Place, name: str, work: Path) -> Layout | None:
    """Return the layout of a single table, list or COCO file."""
    suffix = Path(name).suffix
    if suffix in TABLES:
        return TABLES[suffix]
    path = place.fetch(name, work)
    if suffix == ".txt":
        first = next(iter(read_raw_lines(path, most_bytes=_FIRST_BYTES)), None)
        is_known = first is not None and is_caption_line(first[1].decode(errors="replace"))
        return "caption_lists" if is_known else None
    content = read_json(path, most_bytes=MAX_FILE_BYTES)
    if is_coco(content):
        return "coco"
    if is_question_lists(content):
        return "question_answers"
    return "caption_lists" if is_caption_list(content) else None


def _unknown(place: Place, names: list[str], fitting: Sequence[str], work: Path) -> InputError:
    where = shown(place.folder) if not place.files else place.name_of(place.files[0])
    if fitting:
        return InputError(
            f"source={where} fits the layouts {', '.join(fitting)}: set layout to one of them"
        )
    return InputError(
        f"source={where} has no known layout: {_description(place, names, work)}. "
        f"{_advice(place, names)}Name {_LAYOUTS}; or {scenes.LOCATION} for the built-in "
        "pictures"
    )


def _description(place: Place, names: list[str], work: Path) -> str:
    """Return what was found, for people: files, folders, and how the first text file begins."""
    folders = []
    if not place.is_remote and not place.files:
        folders = sorted(f"{path.name}/" for path in Path(place.folder).iterdir() if path.is_dir())
    entries = folders + names
    listed = ", ".join(entries[:_MAX_SHOWN]) or "it is empty"
    more = f" and {len(entries) - _MAX_SHOWN} more" if len(entries) > _MAX_SHOWN else ""
    text = next((name for name in names if Path(name).suffix in _TEXTS), None)
    if text is None:
        return f"found {listed}{more}"
    with place.fetch(text, work).open("rb") as file:
        first = file.readline(_FIRST_BYTES).decode(errors="replace").strip()
    return f"found {listed}{more}; {text} begins with {_keys(first)}"


def _keys(line: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        return f"the keys {', '.join(record)[:200]}"
    return repr(line[:100])


def _advice(place: Place, names: list[str]) -> str:
    """Return a sentence about what people often name instead of a source; empty if it is none."""
    suffixes = {Path(name).suffix.lower() for name in names}
    if place.files and suffixes <= {*_ARCHIVES}:
        return "Unpack it, and name what comes out. "
    inside = [] if place.is_remote or place.files else _sources_inside(Path(place.folder))
    if inside:
        return f"In it, {', '.join(inside[:_MAX_SHOWN])} may be meant: name one of them. "
    if not suffixes & {*_PICTURES}:
        return ""
    texts = {Path(name).stem for name in names if name.endswith(".txt")}
    if any(Path(name).stem in texts for name in names if not name.endswith(".txt")):
        return (
            "Each picture has a .txt of the same name: docs/your_data.md has the lines that write "
            "captions.jsonl from them. "
        )
    return "There are pictures, and no list of their captions. "


def _sources_inside(folder: Path) -> list[str]:
    """Return the folders within a folder that have a known layout, and lists of captions."""
    found = []
    inner = sorted(path for path in folder.iterdir() if path.is_dir())[:_MOST_FOLDERS]
    for path in (folder, *inner):
        try:
            names = Place(folder=str(path)).names()
        except OSError:  # one that may not be read is none to name
            continue
        if path != folder and any(files_of(each, names) for each in ("image_shards", *_OF_FOLDERS)):
            found.append(str(path))
            continue
        tables = (name for name in names if Path(name).suffix in (*TABLES, ".json"))
        found += [str(path / name) for name in tables if path == folder or "caption" in name]
    return found
