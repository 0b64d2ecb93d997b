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
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import kind_of
from ernie_vilg.storage.jsonl import Line, read_lines, read_raw_lines

CAPTIONS_FILE = "captions.jsonl"
MAX_LINE_BYTES = 1 << 20
"""Length of the longest line of `captions.jsonl` that is read."""

_JOINERS = "\u200c\u200d"
_SPACE_OF_PIECES = "\u2581"


class Reason(StrEnum):
    """Reason of a rejection."""

    NOT_JSON = "not_json"
    """The line is not a JSON object, or too long to be read."""
    MISSING_FIELD = "missing_field"
    """"image" or "caption" is missing or is not a string."""
    EMPTY_CAPTION = "empty_caption"
    """The caption is empty after cleaning."""
    CAPTION_TOO_LONG = "caption_too_long"
    """The caption has more characters than allowed."""
    UNSAFE_PATH = "unsafe_path"
    """The image's path is absolute or leaves the source folder."""
    DUPLICATE_KEY = "duplicate_key"
    """An earlier line names the same image."""
    MISSING_IMAGE = "missing_image"
    """There is no such file."""
    UNREADABLE_IMAGE = "unreadable_image"
    """The file is not a JPEG, PNG or WebP, or it is damaged."""
    IMAGE_TOO_LARGE = "image_too_large"
    """The image has more pixels than allowed."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A line that gives no sample."""

    line: int
    """Line number in `captions.jsonl`, from 1."""
    reason: Reason
    detail: str
    """Wrong value, for people."""


class RejectedError(Exception):
    """A pair cannot be used; the reader of lines turns the error into a `Rejection`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def at(self, line: int) -> Rejection:
        """Return the rejection of a line."""
        return Rejection(line=line, reason=self.reason, detail=self.detail)


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
            yield error.at(number)
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


def clean_caption(caption: str, *, max_characters: int) -> str:
    """Return the caption on one line and without control characters.

    Raises:
        RejectedError: the cleaned caption is empty, or has more than `max_characters`.
    """
    spaced = caption.replace(_SPACE_OF_PIECES, " ")
    visible = "".join(
        " " if character.isspace() else character
        for character in spaced
        if character.isspace() or _is_kept(character)
    )
    cleaned = " ".join(visible.split()).strip(" " + _JOINERS)
    if not cleaned:
        raise RejectedError(Reason.EMPTY_CAPTION, f"{caption!r:.100}")
    if len(cleaned) > max_characters:
        raise RejectedError(
            Reason.CAPTION_TOO_LONG, f"{len(cleaned)} characters, at most {max_characters}"
        )
    return cleaned


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


def _is_kept(character: str) -> bool:
    # Cc: control characters. Cf: format characters, such as those that reverse the direction.
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf")
