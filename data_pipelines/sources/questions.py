"""Reader of questions about pictures with their answers, as FM-IQA has them.

FM-IQA's FM-CH-QA.json is an object with a list of each split, train and val, of objects such as
{"image_id": "132543", "Question": "...?", "Answer": "..."}. An id of digits is that of a picture of
COCO, which stands in train2014/, val2014/ or the folder itself; another id is the name of a file.
Keys may also be in small letters.

The file is parsed whole, once, as COCO's is.

Source: FM-IQA (Gao et al. 2015, arXiv:1505.05612), Baidu's release of 2015.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.caption_lists import file_of
from data_pipelines.sources.coco import MAX_FILE_BYTES
from data_pipelines.sources.listed import Content
from data_pipelines.sources.pictures import PictureFolder
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import kind_of, parse_json, read_bounded

QUESTION, ANSWER = "question", "answer"
"""Columns of a question and its answer."""

_IMAGE_ID = "image_id"
_SPLITS = ("train", "val")


def is_question_lists(content: Any) -> bool:
    """Return whether a JSON value has lists of questions by split."""
    return bool(_lists_of(content))


def read_questions(
    path: Path, pictures: PictureFolder, split: str | None
) -> Iterator[tuple[str, Content]]:
    """Yield place and content of every question of a split.

    Args:
        path: a JSON file of FM-IQA's form.
        pictures: folders of the pictures.
        split: name of the list to read; None where there is one list.

    Raises:
        InputError: the file is not JSON or not of this form, or has no such list.
    """
    text = read_bounded(path, most_bytes=MAX_FILE_BYTES)
    lists = _lists_of(parse_json(text, str(path), is_finite=True))
    if not lists:
        raise InputError(
            f"{path} is not of FM-IQA's form: it must be an object with lists such as train, of "
            'objects such as {"image_id": "132543", "Question": "...?", "Answer": "..."}'
        )
    if split is None and len(lists) == 1:
        (split,) = lists
    if split not in lists:
        raise InputError(
            f"split={split or 'null'}: {path} has the lists {', '.join(lists)}: set split to one"
        )
    for number, item in enumerate(lists[split], 1):
        place = f"{path.name} {split} {number}"
        try:
            yield place, _content_of(item, pictures, split)
        except RejectedError as error:
            yield place, error


def _lists_of(content: Any) -> dict[str, list[Any]]:
    """Return the lists of questions by name; none in another JSON value."""
    if not isinstance(content, dict):
        return {}
    return {
        name: value
        for name, value in content.items()
        if isinstance(value, list) and value and _has_question(value[0])
    }


def _has_question(item: Any) -> bool:
    return isinstance(item, dict) and {QUESTION, ANSWER} <= {key.lower() for key in item}


def _content_of(item: Any, pictures: PictureFolder, split: str) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise RejectedError(Reason.MISSING_FIELD, f"it is {kind_of(item)}, not an object")
    record = {key.lower(): value for key, value in item.items()}
    identity = record.get(_IMAGE_ID)
    if type(identity) is not int and not isinstance(identity, str):
        detail = f"{_IMAGE_ID!r} is {kind_of(identity)} where a number or a string is required"
        raise RejectedError(Reason.MISSING_FIELD, detail)
    return {**record, "image": _file_of(str(identity), pictures, split)}


def _file_of(identity: str, pictures: PictureFolder, split: str) -> str:
    """Return the path of a picture, the first that is there of the places where it may be."""
    if not (identity.isascii() and identity.isdecimal()):
        return file_of(identity, pictures)
    splits = sorted(_SPLITS, key=lambda name: name != split)
    names = [f"COCO_{name}2014_{int(identity):012d}.jpg" for name in splits]
    inner = [f"{name}2014/{file}" for name, file in zip(splits, names, strict=True)]
    for place in (*inner, *names):
        if any(os.path.isfile(os.path.join(folder, place)) for folder in pictures.folders):
            return place
    return inner[0]
