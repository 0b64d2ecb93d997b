r"""JSON Lines: appended to on a disk that may be full, read after a kill.

A killed writer leaves at most one truncated line, the last. The next writer ends that line before
it writes its own. A line that the disk does not take is written with the next one, so that a full
disk stops no run.

Only a line feed ends a line: U+2028, U+0085 and similar characters are text.

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
    """One line of a file; blank lines are skipped."""

    number: int
    """Line number from 1, blank lines included."""
    text: bytes
    """Content without the line feed; only its beginning where it is too long."""
    record: dict[str, Any] | None
    """JSON object of the line; None if it holds none."""
    problem: str | None
    """Sentence that names file, line and fault; None if there is no fault."""
    is_whole: bool
    """Whether it ends with a line feed; a killed writer's last line may not."""
    name: str
    """File and line, for messages."""

    def require(self) -> dict[str, Any]:
        """Return the JSON object of the line.

        Raises:
            InputError: it holds none.
        """
        if self.record is None:
            raise InputError(self.problem)
        return self.record


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive lines of a file."""

    start: int = 0
    """Byte where the first line begins."""
    end: int | None = None
    """Byte where the lines end; None for the end of the file."""
    line: int = 1
    """Number of the first line."""


WHOLE_FILE = Span()


def read_lines(
    path: Path,
    *,
    most_bytes: int = MOST_LINE_BYTES,
    is_finite: bool = False,
    span: Span = WHOLE_FILE,
) -> Iterator[Line]:
    """Yield the lines of a JSON Lines file; faulty ones carry their problem.

    Args:
        path: a regular file.
        most_bytes: limit of one line; the rest of a longer one is skipped.
        is_finite: whether NaN and infinite numbers are faults.
        span: lines to read.

    Raises:
        InputError: it is no regular file.
        OSError: it cannot be opened or read.
    """
    for number, text, is_whole in read_raw_lines(path, most_bytes=most_bytes, span=span):
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
    """Return the entries of a JSON Lines file; a warning names the first unusable line.

    Args:
        path: the file; a missing one has no lines.
        take: makes an entry of a line's object and the line's name; raises `InputError` if the
            object has another form.

    Returns:
        the entries in order, and the number of unusable lines.

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
    """Log once how many lines of a file are unusable, and the problem of the first."""
    if problems:
        logger.warning(
            "%s: %d line(s) hold nothing usable and are skipped; the first: %s",
            path,
            len(problems),
            problems[0],
        )


def read_raw_lines(
    path: Path, *, most_bytes: int = MOST_LINE_BYTES, span: Span = WHOLE_FILE
) -> Iterator[tuple[int, bytes, bool]]:
    """Yield each line of a regular file: its number, its content, and whether a line feed ends it.

    A byte order mark before any line is removed: files that begin with one may have been joined. A
    line of more than `most_bytes` bytes is cut one byte after them.

    Raises:
        InputError: it is no regular file.
        OSError: it cannot be opened or read.
    """
    with open_regular(path) as file:
        file.seek(span.start)
        number = span.line - 1
        while span.end is None or file.tell() < span.end:
            text = file.readline(most_bytes + 1)
            if not text:
                return
            number += 1
            is_whole = text.endswith(b"\n")
            if len(text) > most_bytes and not is_whole:
                is_whole = _skip_rest(file)
            text = text.removeprefix(_BYTE_ORDER_MARK)
            yield number, text.removesuffix(b"\n").removesuffix(b"\r"), is_whole


def line_of(record: Mapping[str, Any]) -> bytes:
    """Return an object as one line of JSON, Chinese as it is.

    NaN and infinite numbers, which JSON does not have, become null. Half a surrogate pair, as in
    the name of a file that is not UTF-8, becomes a question mark.
    """
    text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append lines to a file, which is made if it is missing, and flush them to the device.

    Raises:
        OSError: not all of them could be written.
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
    """Appends lines to an open file; a full disk raises nothing."""

    def __init__(self, path: Path) -> None:
        """Open a file at its end; it is made if it is missing.

        A line that a killed writer left without a line feed is ended.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._waiting = b"\n" if _is_torn(self._file) else b""
        self._has_warned = False

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a line.

        Bytes that the disk does not take wait in memory; above 16 MiB, further lines are dropped.
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


def _skip_rest(file: BinaryIO) -> bool:
    """Skip the rest of a line; return whether a line feed ends it."""
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
