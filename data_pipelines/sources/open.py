"""Opening of the sources of raw pairs that the settings name."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.sources import scenes
from data_pipelines.sources.caption_lists import IMAGE_ID, read_caption_lists
from data_pipelines.sources.captions_file import CAPTION, IMAGE
from data_pipelines.sources.coco import coco_pictures, read_coco
from data_pipelines.sources.csv_table import CsvTable, separator_of
from data_pipelines.sources.image_shards import open_image_shards
from data_pipelines.sources.img2dataset import Img2Dataset
from data_pipelines.sources.json_lines import JsonLines, first_columns
from data_pipelines.sources.listed import ListedSource, Table
from data_pipelines.sources.parquet_table import ParquetTable, columns_of
from data_pipelines.sources.pictures import PictureFolder
from data_pipelines.sources.places import Place, place_of
from data_pipelines.sources.prepared import prepare
from data_pipelines.sources.questions import ANSWER, QUESTION, read_questions
from data_pipelines.sources.recognise import TABLES, files_of, recognise
from data_pipelines.sources.rows import Source
from data_pipelines.sources.text_parts import identity_of
from ernie_vilg.config.shards import BuildShardsConfig, Layout, SourceConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import check_folders, is_remote, shown

_IMAGE_NAMES = (IMAGE, "file_name", "image_path", "path", "filename", "filepath", "file", "img")
_CAPTION_NAMES = (CAPTION, "text", "captions", "title", "description")
"""Usual names of the two columns, the first that a table has is taken."""
_URL_NAMES = ("url", "image_url", "img_url")
"""Names of columns, in small letters, from which pictures must be downloaded first."""

_KEYS = ("image_key", "caption_key", "question_key")
_PARTS = ("split", "image_list")
_UNUSED: Mapping[str, tuple[str, ...]] = {
    "img2dataset": ("image_key", "question_key", "images_root", *_PARTS),
    "coco": (*_KEYS, *_PARTS),
    "caption_lists": ("question_key", "split"),
    "question_answers": (*_KEYS, "image_list"),
    "scenes": (*_KEYS, "images_root", *_PARTS),
    "image_shards": (*_KEYS, "images_root", *_PARTS),
}
"""Settings that a layout has no use for; _PARTS for layouts that are not here."""


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """Columns of a table."""

    image: str
    caption: str
    """Column of the captions, or of the answers."""
    question: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A source to be opened."""

    name: str
    config: SourceConfig
    place: Place
    files: tuple[str, ...]
    """Names of the files that hold the rows."""
    layout: Layout
    work: Path
    rows_per_part: int

    @property
    def pictures(self) -> PictureFolder:
        """Folders of the pictures."""
        root = self.config.images_root
        if root is None and self.layout == "coco":
            root = coco_pictures(self.place.folder, self.files[0])
        elif root is not None and not is_remote(root):
            root = str(Path(root).absolute())
        return PictureFolder(folder=self.place.folder, images_root=root)

    def path(self) -> Path:
        """Return the local path of the only file.

        Raises:
            InputError: there are several.
        """
        if len(self.files) > 1:
            raise InputError(
                f"source={shown(self.config.location)} has several files of layout={self.layout}, "
                f"such as {self.files[0]} and {self.files[1]}: name one of them, or several sources"
            )
        return self.place.fetch(self.files[0], self.work)


def open_sources(config: BuildShardsConfig, folder: Path) -> list[Source]:
    """Return the sources in the order of the settings, checked and ready to be read.

    Args:
        config: settings of the program.
        folder: folder within the work folder, for listings and copies. They are written whole, and
            used again after a restart if the source is the same.

    Raises:
        InputError: a source is missing or of no known layout, or lacks a column; the message says
            what was found and which layout or setting fits.
        OSError: a source cannot be read.
    """
    return [
        _open(name, source, folder / f"{index:03d}", config.rows_per_part)
        for index, (name, source) in enumerate(config.all_sources.items())
    ]


def _open(name: str, config: SourceConfig, work: Path, rows_per_part: int) -> Source:
    if config.location == scenes.LOCATION and config.layout in ("auto", "scenes"):
        _check_scenes(config)
        return scenes.ScenesSource(name=name, rows_per_part=rows_per_part)
    place = place_of(config.location)
    if config.images_root is not None and not is_remote(config.images_root):
        check_folders({"images_root": config.images_root})
    if config.image_list is not None and not Path(config.image_list).is_file():
        raise InputError(
            f"image_list={config.image_list} is no file: name one with the id of a picture in "
            "every line"
        )
    layout, files = _layout_of(config, place, work)
    _check_settings(config, layout)
    request = _Request(
        name=name,
        config=config,
        place=place,
        files=files,
        layout=layout,
        work=work,
        rows_per_part=rows_per_part,
    )
    try:
        return _READERS[layout](request)
    except FileNotFoundError as error:
        raise InputError(f"source={shown(config.location)}: {error}: name another") from error
    except PermissionError as error:
        raise InputError(
            f"source={shown(config.location)} may not be read ({error}): change its permissions, "
            "or name another"
        ) from error


def _check_scenes(config: SourceConfig) -> None:
    _check_settings(config, "scenes")
    if config.layout == "auto" and Path(config.location).exists():
        raise InputError(
            f"source={config.location} means the built-in pictures, and there is such a file or "
            f"folder: set layout=scenes, or name ./{config.location}"
        )


def _layout_of(config: SourceConfig, place: Place, work: Path) -> tuple[Layout, tuple[str, ...]]:
    if config.layout == "auto":
        return recognise(place, work)
    if config.layout == "scenes":
        raise InputError(
            f"layout=scenes with source={shown(config.location)}: set source={scenes.LOCATION}"
        )
    files = place.files or files_of(config.layout, place.names())
    if not files:
        layout, _ = recognise(place, work)  # says what there is, if it is nothing known
        raise InputError(
            f"layout={config.layout} with source={shown(config.location)}, which has no file of "
            f"this layout: set layout={layout}, or name another source"
        )
    return config.layout, files


def _check_settings(config: SourceConfig, layout: str) -> None:
    """Refuse settings that would do nothing."""
    for setting in _UNUSED.get(layout, _PARTS):
        if getattr(config, setting) is not None:
            raise InputError(
                f"{setting}={getattr(config, setting)} has no meaning for layout={layout} "
                f"(source={shown(config.location)}): leave it out"
            )


def _open_table(request: _Request) -> Source:
    """Open a source of one table, or of Parquet files."""
    layout = request.layout
    if layout in ("captions", "image_folder"):
        layout = TABLES[Path(request.files[0]).suffix]
    if layout == "parquet":
        return _open_parquet(request)
    path = request.path()
    listing = request.work / "parts.jsonl"
    table: Table
    if layout == "jsonl":
        columns = first_columns(path)
        table = JsonLines(path, listing=listing, rows_per_part=request.rows_per_part)
    else:
        csv_table = CsvTable(
            path,
            separator=separator_of(path) if layout == "csv" else "\t",
            listing=listing,
            rows_per_part=request.rows_per_part,
        )
        columns, table = csv_table.columns, csv_table
    return _listed(request, table, _keys_of(request, columns, path.name))


def _open_parquet(request: _Request) -> Source:
    paths = tuple(request.place.fetch(file, request.work) for file in request.files)
    keys = _keys_of(request, list(columns_of(paths[0])), paths[0].name)
    table = ParquetTable(
        paths=paths,
        listing=request.work / "parts.jsonl",
        rows_per_part=request.rows_per_part,
        image_key=keys.image,
        caption_key=keys.caption,
    )
    return _listed(request, table, keys)


def _listed(request: _Request, table: Table, keys: _Keys) -> Source:
    return ListedSource(
        name=request.name,
        table=table,
        pictures=request.pictures,
        image_key=keys.image,
        caption_key=keys.caption,
        question_key=keys.question,
    )


def _keys_of(request: _Request, columns: list[str], file: str) -> _Keys:
    """Return the columns of picture and caption, and of the question where there is one.

    Raises:
        InputError: the table has none.
    """
    config = request.config
    question = _question_key(config, columns, file)
    usual = _CAPTION_NAMES if question is None else (ANSWER,)
    if request.layout == "captions":
        return _Keys(
            image=config.image_key or IMAGE,
            caption=config.caption_key or usual[0],
            question=question,
        )
    return _Keys(
        image=_key_of(config.image_key, "image_key", _IMAGE_NAMES, columns, file),
        caption=_key_of(config.caption_key, "caption_key", usual, columns, file),
        question=question,
    )


def _question_key(config: SourceConfig, columns: list[str], file: str) -> str | None:
    """Return the column of the question; None in a table of captions.

    Without settings, a table with question and answer and none of the usual columns of captions
    has questions.
    """
    if config.question_key is not None:
        return _key_of(config.question_key, "question_key", (), columns, file)
    has_captions = config.caption_key is not None or not {*columns}.isdisjoint(_CAPTION_NAMES)
    return QUESTION if {QUESTION, ANSWER} <= {*columns} and not has_captions else None


def _key_of(
    given: str | None, setting: str, usual: tuple[str, ...], columns: list[str], file: str
) -> str:
    key = given or next((name for name in usual if name in columns), None)
    if key is None or (columns and key not in columns):
        problem = "no such column" if given else f"none of the usual columns ({', '.join(usual)})"
        raise InputError(
            f"{setting}={given or 'null'}: {file} has {problem}, only {', '.join(columns)[:500]}: "
            f"{_remedy(setting, columns)}"
        )
    return key


def _remedy(setting: str, columns: list[str]) -> str:
    """Return what to do about a table without a column."""
    if any("://" in column for column in columns):
        return (
            "its first line must name the columns, and holds a URL; URLs are downloaded with "
            "img2dataset first (output_format=webdataset), whose folder is then the source"
        )
    if setting == "image_key" and any(column.lower() in _URL_NAMES for column in columns):
        return (
            f"set {setting} to the one with paths of files; URLs are downloaded with img2dataset "
            "first (output_format=webdataset), whose folder is then the source"
        )
    return f"set {setting} to one of them"


def _open_coco(request: _Request) -> Source:
    path = request.path()
    table = prepare(
        path,
        functools.partial(read_coco, path),
        work=request.work,
        settings={"layout": request.layout},
        rows_per_part=request.rows_per_part,
    )
    return _listed(request, table, _Keys(image=IMAGE, caption=CAPTION))


def _open_question_answers(request: _Request) -> Source:
    path, split = request.path(), request.config.split
    table = prepare(
        path,
        functools.partial(read_questions, path, request.pictures, split),
        work=request.work,
        settings={
            "layout": request.layout,
            "split": split,
            "folders": list(request.pictures.folders),
        },
        rows_per_part=request.rows_per_part,
    )
    return _listed(request, table, _Keys(image=IMAGE, caption=ANSWER, question=QUESTION))


def _open_caption_lists(request: _Request) -> Source:
    path = request.path()
    config = request.config
    image_key = config.image_key or IMAGE_ID
    listed = None if config.image_list is None else Path(config.image_list)
    settings: dict[str, Any] = {"image_key": image_key, "folders": list(request.pictures.folders)}
    if listed is not None:
        settings["image_list"] = identity_of(listed)
    table = prepare(
        path,
        functools.partial(read_caption_lists, path, request.pictures, image_key, listed),
        work=request.work,
        settings=settings,
        rows_per_part=request.rows_per_part,
    )
    return _listed(request, table, _Keys(image=IMAGE, caption=config.caption_key or CAPTION))


def _open_img2dataset(request: _Request) -> Source:
    return Img2Dataset(
        name=request.name,
        place=request.place,
        files=request.files,
        caption_key=request.config.caption_key,
        work=request.work,
    )


def _open_image_shards(request: _Request) -> Source:
    return open_image_shards(request.name, request.place, request.work)


_READERS: Mapping[str, Callable[[_Request], Source]] = {
    "captions": _open_table,
    "csv": _open_table,
    "tsv": _open_table,
    "jsonl": _open_table,
    "parquet": _open_table,
    "image_folder": _open_table,
    "coco": _open_coco,
    "caption_lists": _open_caption_lists,
    "question_answers": _open_question_answers,
    "img2dataset": _open_img2dataset,
    "image_shards": _open_image_shards,
}
"""Opens a source, by its layout."""
