"""Reader of lists of pictures with several captions each, as AIC-ICC and COCO-CN have them.

AIC-ICC: a JSON list of objects such as {"image_id": "8f00f3d0.jpg", "caption": ["...", "..."]}.
COCO-CN: such a list, or its own text form, lines of an id, "#", a number, a tab and a caption, as
`COCO_train2014_000000123456#0<tab>...`. An id without an extension is the name of a .jpg. Where the
folder of pictures has COCO's folders (train2014, val2014), an id that names one is looked up there.

A JSON list is parsed whole, once; a text is read line by line. COCO-CN names the pictures of each
split in a list of its own, a line each, such as coco-cn_train.txt.

Source: https://github.com/li-xirong/coco-cn; AI Challenger 2017 (arXiv:1711.06475).
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.coco import MAX_FILE_BYTES
from data_pipelines.sources.json_lines import MAX_LINE_BYTES
from data_pipelines.sources.listed import Content, text_of
from data_pipelines.sources.pictures import PictureFolder
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import kind_of, parse_json, read_bounded
from ernie_vilg.storage.jsonl import read_raw_lines

IMAGE_ID, CAPTION = "image_id", "caption"

_LINE = re.compile(r"([^\t#]+)#\d+\t(.*)", re.DOTALL)
_EXTENSION = re.compile(r".*\.(jpe?g|png|webp)", re.IGNORECASE)
_FOLDER = re.compile(r"COCO_((?:train|val|test)\d{4})_")

logger = logging.getLogger(__name__)


def read_caption_lists(
    path: Path, pictures: PictureFolder, image_key: str, image_list: Path | None = None
) -> Iterator[tuple[str, Content]]:
    """Yield place and content of every picture of a list, or of those of a split.

    Args:
        path: a JSON file, or a text of COCO-CN.
        pictures: folders of the pictures.
        image_key: key of the picture's id.
        image_list: file with the id of a picture in every line; rows of other pictures are left
            out. None reads all.

    Raises:
        InputError: the file is not JSON, or no list; or `image_list` names none of its pictures.
    """
    entries = _lines(path) if path.suffix == ".txt" else _items(path)
    wanted = None if image_list is None else _ids_of(image_list)
    found = set()
    for place, entry in entries:
        if isinstance(entry, dict):
            try:
                image_id = text_of(entry, image_key)
            except RejectedError as error:
                yield place, error
                continue
            if wanted is not None and _stem(image_id) not in wanted:
                continue
            found.add(_stem(image_id))
            entry = {**entry, "image": file_of(image_id, pictures)}
        yield place, entry
    if wanted is not None:
        _check_found(path, image_list, wanted, found)


def _ids_of(image_list: Path) -> frozenset[str]:
    """Return the ids of a list of pictures, without extensions."""
    lines = read_bounded(image_list, most_bytes=MAX_FILE_BYTES).decode(errors="replace")
    return frozenset(_stem(line.strip()) for line in lines.splitlines() if line.strip())


def _stem(image_id: str) -> str:
    return os.path.splitext(image_id)[0] if _EXTENSION.fullmatch(image_id) else image_id


def _check_found(
    path: Path, image_list: Path | None, wanted: frozenset[str], found: set[str]
) -> None:
    if not found:
        raise InputError(
            f"image_list={image_list} names none of the pictures of {path}: name a file with an id "
            "of that file in every line"
        )
    if missing := len(wanted - found):
        logger.warning(
            "%s: %d of %d pictures of %s have no caption", path, missing, len(wanted), image_list
        )


def file_of(image_id: str, pictures: PictureFolder) -> str:
    """Return the path of a picture, given its id."""
    name = image_id if _EXTENSION.fullmatch(image_id) else f"{image_id}.jpg"
    match = _FOLDER.match(name)
    if match and any(os.path.isdir(os.path.join(root, match[1])) for root in pictures.folders):
        return f"{match[1]}/{name}"
    return name


def is_caption_list(content: Any) -> bool:
    """Return whether a JSON value is a list of objects."""
    return isinstance(content, list) and all(isinstance(item, dict) for item in content[:1])


def is_caption_line(text: str) -> bool:
    """Return whether a line has COCO-CN's text form."""
    return _LINE.fullmatch(text) is not None


def _items(path: Path) -> Iterator[tuple[str, dict[str, Any] | RejectedError]]:
    text = read_bounded(path, most_bytes=MAX_FILE_BYTES)
    content = parse_json(text, str(path), is_finite=True)
    if not isinstance(content, list):
        raise InputError(
            f"{path} holds {kind_of(content)}: it must be a list of objects such as "
            '{"image_id": "a.jpg", "caption": ["...", "..."]}'
        )
    for number, item in enumerate(content, 1):
        place = f"{path.name} item {number}"
        if isinstance(item, dict):
            yield place, item
        else:
            yield place, RejectedError(Reason.MISSING_FIELD, f"{kind_of(item)}, not an object")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | RejectedError]]:
    for number, content, _ in read_raw_lines(path, most_bytes=MAX_LINE_BYTES):
        if not content.strip():
            continue
        place = f"{path.name} line {number}"
        try:
            match = _LINE.fullmatch(content.decode()) if len(content) <= MAX_LINE_BYTES else None
        except UnicodeDecodeError as error:
            yield place, RejectedError(Reason.NOT_A_ROW, f"byte {error.start} is not UTF-8")
            continue
        if match is None:
            excerpt = content[:100].decode(errors="replace")
            yield place, RejectedError(Reason.NOT_A_ROW, f"{excerpt!r} is not id#number, caption")
        else:
            yield place, {IMAGE_ID: match[1], CAPTION: match[2]}
