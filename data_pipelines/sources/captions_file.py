"""Reader of raw pairs, a folder of images and `captions.jsonl`, that trusts nothing in it.

Every line of `captions.jsonl` becomes either a `RawPair` or a `Rejection` with its reason. Images
are only looked up here; `data_pipelines.images` decodes them.

Captions are cleaned: white space of any kind, line breaks included, becomes one space, and so does
U+2581, SentencePiece's space. Control and format characters, such as zero-width ones and those that
reverse the direction of writing, are removed, except the two joiners that some scripts and emoji
need.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.captions import clean_caption
from data_pipelines.rejections import Reason, RejectedError
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import kind_of
from ernie_vilg.storage.jsonl import Line, read_lines, read_raw_lines

CAPTIONS_FILE = "captions.jsonl"
MAX_LINE_BYTES = 1 << 20
"""Length of the longest line of `captions.jsonl` that is read."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A line that gives no sample."""

    line: int
    """Line number in `captions.jsonl`, from 1."""
    reason: Reason
    detail: str
    """Wrong value, for people."""


@dataclass(frozen=True, kw_only=True)
class RawPair:
    """An image that exists and a caption that is clean."""

    line: int
    """Line number in `captions.jsonl`, from 1."""
    key: str
    """Unique name among the samples: digits of the line's position from 0."""
    image: Path
    """File of the image, with links resolved."""
    caption: str
    """Cleaned caption: one line, not empty."""
    record: Mapping[str, Any]
    """JSON object of the line, with the cleaned caption."""


def count_reasons(rejections: list[Rejection]) -> dict[str, int]:
    """Return the number of rejections by reason, most frequent first."""
    return dict(Counter(str(rejection.reason) for rejection in rejections).most_common())


def count_lines(source: Path) -> int:
    """Return the number of lines of the source's `captions.jsonl` that are not blank.

    Raises:
        InputError: there is no such file.
    """
    lines = read_raw_lines(_captions_file(source), most_bytes=MAX_LINE_BYTES)
    return sum(1 for _, text, _ in lines if text.strip())


def read_pairs(source: Path, *, max_caption_characters: int) -> Iterator[RawPair | Rejection]:
    """Yield the pair or rejection of each line of `captions.jsonl`, in order; skip blank lines.

    Args:
        source: folder of raw pairs.
        max_caption_characters: largest number of characters of a caption, after cleaning.

    Raises:
        InputError: there is no `captions.jsonl`.
    """
    root = os.path.realpath(source)
    line_of_image: dict[str, int] = {}
    lines = read_lines(_captions_file(source), most_bytes=MAX_LINE_BYTES, is_finite=True)
    for line in lines:
        number = line.number
        try:
            record = record_of(line)
            caption = clean_caption(record["caption"], max_characters=max_caption_characters)
            image = find_image(root, record["image"])
            earlier = line_of_image.setdefault(image, number)
            if earlier != number:
                raise RejectedError(
                    Reason.DUPLICATE_KEY, f"{record['image']!r} is the image of line {earlier}"
                )
        except RejectedError as error:
            yield Rejection(line=number, reason=error.reason, detail=error.detail)
            continue
        yield RawPair(
            line=number,
            key=f"{number - 1:08d}",
            image=Path(image),
            caption=caption,
            record={**record, "caption": caption},
        )


def record_of(line: Line) -> dict[str, Any]:
    """Return the JSON object of a line, with strings named "image" and "caption".

    Raises:
        RejectedError: the line is not a JSON object in UTF-8, or one of the two strings is missing.
    """
    if line.record is None:
        excerpt = line.text[:100].decode(errors="replace")
        raise RejectedError(Reason.NOT_JSON, f"{excerpt!r} ({line.problem})")
    for field in ("image", "caption"):
        if field not in line.record:
            raise RejectedError(Reason.MISSING_FIELD, f"there is no {field!r}")
        value = line.record[field]
        if not isinstance(value, str):
            raise RejectedError(
                Reason.MISSING_FIELD, f"{field!r} is {kind_of(value)} where a string is required"
            )
    return line.record


def find_image(root: str, name: str) -> str:
    """Return the real path of an image within the source folder.

    Args:
        root: real path of the source folder.
        name: path in the line, relative to the folder.

    Raises:
        RejectedError: the path is absolute, leaves the folder by ".." or by a link, or is not a
            regular file.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise RejectedError(Reason.UNSAFE_PATH, f"{name!r:.300}")
    try:
        path = os.path.realpath(os.path.join(root, name))
        if os.path.commonpath([root, path]) != root:
            raise RejectedError(Reason.UNSAFE_PATH, f"{name!r:.300} links to {path!r}")
        is_file = stat.S_ISREG(os.stat(path).st_mode)  # a pipe would wait for a writer forever
    except OSError as error:
        raise RejectedError(Reason.MISSING_IMAGE, f"{name!r:.300} ({error.strerror})") from error
    if not is_file:
        raise RejectedError(Reason.MISSING_IMAGE, f"{name!r:.300} is not a regular file")
    return path


def _captions_file(source: Path) -> Path:
    path = source / CAPTIONS_FILE
    if not path.is_file():
        raise InputError(
            f"source={source} has no {CAPTIONS_FILE}: name a folder with one JSON object per "
            'line, such as {"image": "images/0.png", "caption": "..."}'
        )
    return path
