"""Reader of COCO's captions: one JSON file with a list of pictures and a list of annotations.

The file is parsed whole, once, so the program needs memory for it at its start: about six times its
size, half a gigabyte for COCO's own 91 MB. Rows are those of the pictures in their order, each with
its annotations in theirs; annotations of unknown pictures come last.

Source: https://cocodataset.org/#format-data
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.listed import Content
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import kind_of, parse_json, read_bounded

MAX_FILE_BYTES = 2 << 30
"""Largest file that is parsed."""

logger = logging.getLogger(__name__)


def read_coco(path: Path) -> Iterator[tuple[str, Content]]:
    """Yield place and content of every annotation.

    Raises:
        InputError: the file is not JSON, or not of COCO's form.
    """
    text = read_bounded(path, most_bytes=MAX_FILE_BYTES)
    content = parse_json(text, str(path), is_finite=True)
    if not is_coco(content):
        raise InputError(
            f"{path} is not of COCO's form: it must be an object with the lists images and "
            "annotations"
        )
    pictures, ambiguous = _pictures_of(content["images"])
    order = {identity: place for place, identity in enumerate(pictures)}
    last = len(order)
    numbered = list(enumerate(content["annotations"]))
    numbered.sort(key=lambda item: order.get(_id_of(item[1], "image_id"), last))
    used = set()
    for number, annotation in numbered:
        identity = _id_of(annotation, "image_id")
        used.add(identity)
        yield (
            f"{path.name} annotation {number + 1}",
            _content_of(annotation, pictures.get(identity), identity in ambiguous),
        )
    if num_bare := len(pictures.keys() - used):
        logger.warning("%s: %d of %d pictures have no caption", path, num_bare, len(pictures))


def coco_pictures(folder: str, file: str) -> str | None:
    """Return the folder of pictures where COCO has it, None if it is not there.

    Args:
        folder: folder of the file, such as coco/annotations.
        file: name of the file, such as captions_train2017.json, of coco/train2017.
    """
    path = Path(folder).parent / Path(file).stem.removeprefix("captions_")
    return str(path) if "://" not in folder and path.is_dir() else None


def is_coco(content: Any) -> bool:
    """Return whether a JSON value has COCO's two lists."""
    return isinstance(content, dict) and all(
        isinstance(content.get(name), list) for name in ("images", "annotations")
    )


_Id = tuple[str, int | str] | None
"""Kind and value of an id; None where there is none."""


def _id_of(entry: Any, key: str) -> _Id:
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, str | int):
        return kind_of(value), value
    return None


def _pictures_of(images: list[Any]) -> tuple[dict[_Id, Mapping[str, Any]], set[_Id]]:
    """Return the pictures by id, and the ids that several pictures have."""
    pictures: dict[_Id, Mapping[str, Any]] = {}
    ambiguous = set[_Id]()
    for image in images:
        identity = _id_of(image, "id")
        if identity is None:
            continue
        earlier = pictures.setdefault(identity, image)
        if earlier.get("file_name") != image.get("file_name"):
            ambiguous.add(identity)
    return pictures, ambiguous


def _content_of(annotation: Any, picture: Mapping[str, Any] | None, is_ambiguous: bool) -> Content:
    if not isinstance(annotation, dict):
        return RejectedError(Reason.MISSING_FIELD, f"it is {kind_of(annotation)}, not an object")
    shown = f"image_id={annotation.get('image_id')!r:.80}"
    if picture is None:
        return RejectedError(Reason.NO_SUCH_PICTURE, f"{shown} is the id of no picture")
    if is_ambiguous:
        return RejectedError(Reason.NO_SUCH_PICTURE, f"{shown} is the id of several pictures")
    known = {key: value for key, value in picture.items() if not isinstance(value, dict | list)}
    record = {"image": picture.get("file_name"), **known}
    for key in ("file_name", "id"):
        record.pop(key, None)
    record |= {"image_id": annotation["image_id"], "annotation_id": annotation.get("id")}
    return {**record, "caption": annotation.get("caption")}
