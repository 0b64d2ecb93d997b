r"""Files of JSON objects, one a line: added to on a disk that may be full, read after a kill.

A killed writer leaves at most one truncated line, the last. The next writer ends it, so that its
own first line stands alone. A line that does not reach the disk waits for the next one, so that a
full disk costs nothing but time.

Lines end with a line feed and nothing else: U+2028, U+0085 and their like are text within one.

Source: ours, on JSON Lines (https://jsonlines.org).
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import object_of, open_regular, parse_json

MOST_LINE_BYTES = 16 << 20
"""Default limit of one line."""

_MOST_WAITING_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

logger = logging.getLogger(__name__)

Entry = TypeVar("Entry")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a file that is not blank."""

    number: int
    """Counted from 1, blank lines included."""
    text: bytes
    """Its content without the line feed; the beginning of it where it is too long."""
    record: dict[str, Any] | None
    """The object that it holds; None where it holds none."""
    problem: str | None
    """A sentence that names file, line and fault; None where nothing is wrong."""
    is_whole: bool
    """Whether it ends with a line feed; a killed writer's last line may not."""
    name: str
    """File and line, for messages."""

    def require(self) -> dict[str, Any]:
        """Return the object that it holds.

        Raises:
            InputError: it holds none.
        """
        if self.record is None:
            raise InputError(self.problem)
        return self.record


def read_lines(
    path: Path, *, most_bytes: int = MOST_LINE_BYTES, is_finite: bool = False
) -> Iterator[Line]:
    """Yield the lines of a JSON Lines file, wrong ones with what is wrong.

    Args:
        path: a regular file.
        most_bytes: the longest line that is read; of a longer one the rest is passed over.
        is_finite: whether NaN and infinite numbers are wrong.

    Raises:
        InputError: it is no regular file.
        OSError: it cannot be opened or read.
    """
    for number, text, is_whole in read_raw_lines(path, most_bytes=most_bytes):
        if not text.strip():
            continue
        name, record, problem = f"{path} line {number}", None, None
        if len(text) > most_bytes:
            problem = f"{name} has more than {most_bytes:,} bytes: shorten or remove it"
        else:
            try:
                record = object_of(parse_json(text, name, is_finite=is_finite), name)
            except InputError as error:
                problem = str(error)
        yield Line(
            number=number,
            text=text,
            record=record,
            problem=problem,
            is_whole=is_whole,
            name=name,
        )


def read_records(
    path: Path, take: Callable[[dict[str, Any], str], Entry]
) -> tuple[list[Entry], int]:
    """Return what the lines of a file of ours hold; a warning names the first that is unusable.

    Args:
        path: the file; where there is none, there are no lines.
        take: makes an entry of a line's object and the line's name; raises `InputError` where the
            object is of another form.

    Returns:
        the entries in order, and the number of lines that hold none.

    Raises:
        InputError: the path is no regular file.
        OSError: it cannot be opened or read.
    """
    entries, problems = [], []
    for line in read_lines(path) if os.path.lexists(path) else ():
        try:
            entries.append(take(line.require(), line.name))
        except InputError as error:
            problems.append(str(error))
    warn_of_unusable(path, problems)
    return entries, len(problems)


def warn_of_unusable(path: Path, problems: Sequence[str]) -> None:
    """Say once how many lines of a file hold nothing usable, and what is wrong with the first."""
    if problems:
        logger.warning(
            "%s: %d line(s) hold nothing usable and are passed over; the first: %s",
            path,
            len(problems),
            problems[0],
        )


def read_raw_lines(
    path: Path, *, most_bytes: int = MOST_LINE_BYTES
) -> Iterator[tuple[int, bytes, bool]]:
    """Yield number, content and whether it is whole of every line of a regular file.

    A byte order mark before a line is left out: files that begin with one may have been joined. Of
    a line of more than `most_bytes` bytes, one more than these is yielded.

    Raises:
        InputError: it is no regular file.
        OSError: it cannot be opened or read.
    """
    with open_regular(path) as file:
        number = 0
        while text := file.readline(most_bytes + 1):
            number += 1
            is_whole = text.endswith(b"\n")
            if len(text) > most_bytes and not is_whole:
                is_whole = _pass_over(file)
            text = text.removeprefix(_BYTE_ORDER_MARK)
            yield number, text.removesuffix(b"\n").removesuffix(b"\r"), is_whole


def line_of(record: Mapping[str, Any]) -> bytes:
    """Return what stands for an object in a file: one line, Chinese as it is.

    A number that JSON does not have, NaN or infinite, becomes null. Half a surrogate pair, as in
    the name of a file that is not UTF-8, becomes a question mark.
    """
    text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to a file, down to the device; it is made where there is none.

    Raises:
        OSError: they could not be written whole.
    """
    added = b"".join(line_of(record) for record in records)
    if added:
        append_lines(path, added)


def append_lines(path: Path, added: bytes) -> int:
    """Add whole lines as `append_records` does; return the size of the file afterwards."""
    with path.open("ab+") as file:
        file.write(b"\n" * _is_torn(file.fileno()) + added)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


class LineFile:
    """Lines in the order in which they were added."""

    def __init__(self, path: Path) -> None:
        """Open a file at its end; it is made where there is none.

        A last line that a killed writer left without an end is ended.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._waiting = b"\n" if _is_torn(self._file) else b""
        self._has_warned = False

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line; a disk that is full raises nothing.

        What the disk does not take waits in memory, and is given up above 16 MiB.
        """
        added = line_of(record)
        if len(self._waiting) + len(added) <= _MOST_WAITING_BYTES:
            self._waiting += added
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            if not self._has_warned:
                logger.warning("%s: %s; the run goes on, lines wait", self._path, error.strerror)
            self._has_warned = True
        else:
            self._has_warned = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _pass_over(file: BinaryIO) -> bool:
    """Read to the end of a line; return whether it has one."""
    while block := file.read(_BLOCK_BYTES):  # readline would take it 8 KiB at a time
        end = block.find(b"\n")
        if end >= 0:
            file.seek(end + 1 - len(block), os.SEEK_CUR)
            return True
    return False


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
