"""Opening of the sources of raw pairs that the settings name."""

from pathlib import Path

from data_pipelines.sources.captions_file import CAPTION, CAPTIONS_FILE, IMAGE
from data_pipelines.sources.json_lines import JsonLines
from data_pipelines.sources.listed import ListedSource
from data_pipelines.sources.pictures import PictureFolder
from data_pipelines.sources.rows import Source
from ernie_vilg.config.shards import BuildShardsConfig, SourceConfig
from ernie_vilg.errors import InputError


def open_sources(config: BuildShardsConfig, folder: Path) -> list[Source]:
    """Return the sources in the order of the settings, checked and ready to be read.

    Args:
        config: settings of the program.
        folder: folder within the work folder, for listings and copies. They are written whole, and
            used again after a restart if the source is the same.

    Raises:
        InputError: a source is missing or of no known layout, or lacks a column; the message says
            what was found and which layout or setting fits.
    """
    return [
        _open(name, source, folder / f"{index:03d}", config.rows_per_part)
        for index, (name, source) in enumerate(config.all_sources.items())
    ]


def _open(name: str, source: SourceConfig, folder: Path, rows_per_part: int) -> Source:
    path = Path(source.location) / CAPTIONS_FILE
    if not path.is_file():
        raise InputError(f"source={source.location} has no {CAPTIONS_FILE}")
    return ListedSource(
        name=name,
        table=JsonLines(path, listing=folder / "parts.jsonl", rows_per_part=rows_per_part),
        pictures=PictureFolder(folder=source.location, images_root=source.images_root),
        image_key=source.image_key or IMAGE,
        caption_key=source.caption_key or CAPTION,
    )
