"""Reader of a folder of pictures with `captions.jsonl`.

Each line is an object with "image", a path within the folder, and "caption", a string or a list of
strings. Several lines may name the same picture.
"""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.rejections import Rejection
from data_pipelines.sources.json_lines import JsonLines
from data_pipelines.sources.listed import ListedSource
from data_pipelines.sources.pictures import PictureFolder
from data_pipelines.sources.rows import Part, RawPair
from ernie_vilg.errors import InputError

CAPTIONS_FILE = "captions.jsonl"
IMAGE, CAPTION = "image", "caption"


def read_captions_file(folder: Path) -> Iterator[RawPair | Rejection]:
    """Yield the rows of a local folder in one process, in order.

    Args:
        folder: folder of pictures and `captions.jsonl`.

    Raises:
        InputError: there is no such file.
    """
    path = folder / CAPTIONS_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {CAPTIONS_FILE}: name a folder with one JSON object per line, such "
            'as {"image": "images/0.png", "caption": "..."}'
        )
    source = ListedSource(
        name=str(folder),
        table=JsonLines(path, listing=path, rows_per_part=1),  # no parts are asked for
        pictures=PictureFolder(folder=str(folder)),
        image_key=IMAGE,
        caption_key=CAPTION,
    )
    return source.rows(Part(source=source.name, file=path.name))
