"""Reader of tables in text: values separated by commas, semicolons or tabs, with a header.

Quoting is that of RFC 4180: a field in quotes may hold separators, line breaks, and quotes written
twice. A record that cannot be read is rejected, and reading goes on with the line after its first.
"""

import codecs
import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.listed import Content
from data_pipelines.sources.rows import Part
from data_pipelines.sources.text_parts import TextParts, span_of
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import open_regular
from ernie_vilg.storage.jsonl import Span

MAX_RECORD_BYTES = 1 << 20
"""Length of the longest record that is read."""

logger = logging.getLogger(__name__)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Record:
    """One record of a file, or a line of which none could be made."""

    start: int
    """Byte where it begins."""
    line: int
    """Number of its first line."""
    fields: list[str] | str
    """Its fields, or the reason why there are none."""


class CsvTable:
    """The records of one file."""

    def __init__(self, path: Path, *, separator: str, listing: Path, rows_per_part: int) -> None:
        """Read the header.

        Args:
            path: the file.
            separator: character between fields.
            listing: file in the work folder that keeps the parts.
            rows_per_part: records of each part but the last.

        Raises:
            InputError: the file has no header.
        """
        self._path, self._separator = path, separator
        self.columns = header_of(path, separator)
        self._parts = TextParts(
            path=path, listing=listing, rows_per_part=rows_per_part, bounds=self._bounds
        )

    def fingerprint(self) -> str:
        """Return a hash that changes with the file."""
        return self._parts.fingerprint()

    def parts(self, source: str) -> Iterator[Part]:
        """Yield the parts in order."""
        return self._parts.parts(source)

    def of_part(self, part: Part) -> "CsvTable":
        """Return the table itself."""
        return self

    def records(self, part: Part) -> Iterator[tuple[str, Content]]:
        """Yield place and content of every record of a part."""
        width = len(self.columns)
        is_first = part.start == 0
        for record in _records(self._path, self._separator, span_of(part)):
            if is_first:  # the header
                is_first = False
                continue
            place = f"{self._path.name} line {record.line}"
            fields = record.fields
            if isinstance(fields, list) and len(fields) != width:
                fields = f"{len(fields)} fields where the header has {width}"
            if isinstance(fields, str):
                yield place, RejectedError(Reason.NOT_A_ROW, fields)
            else:
                yield place, dict(zip(self.columns, fields, strict=True))

    def _bounds(self, path: Path, rows_per_part: int) -> Iterator[Span]:
        start, line, count = 0, 1, -1  # the header is no row
        for record in _records(path, self._separator, Span()):
            if count == rows_per_part:
                yield Span(start=start, end=record.start, line=line)
                start, line, count = record.start, record.line, 0
            count += 1
        if count > 0:
            yield Span(start=start, end=path.stat().st_size, line=line)


def separator_of(path: Path) -> str:
    """Return the separator of a .csv: a semicolon where the first line has no comma.

    Spreadsheets write semicolons where the comma is the decimal mark.

    Raises:
        InputError: the file is UTF-16.
    """
    with open_regular(path) as file:
        first = file.readline(MAX_RECORD_BYTES)
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(
            f"{path} is UTF-16: save it as UTF-8 (in Excel: CSV UTF-8), or run "
            f"iconv -f UTF-16 -t UTF-8 {path.name} > utf8.csv"
        )
    if b"," in first or b";" not in first:
        return ","
    logger.info("%s: its first line has semicolons and no comma: they separate the fields", path)
    return ";"


def header_of(path: Path, separator: str) -> list[str]:
    """Return the columns of a table.

    Raises:
        InputError: its first line is no header.
    """
    first = next(_records(path, separator, Span()), None)
    if first is None:
        raise InputError(f"{path} is empty: its first line must name the columns")
    columns = first.fields
    if isinstance(columns, str):
        raise InputError(f"the first line of {path} must name the columns: {columns}")
    if len(set(columns)) != len(columns) or "" in columns:
        raise InputError(
            f"the first line of {path} must name the columns, each by another name: it holds "
            f"{', '.join(columns)[:300]}"
        )
    return columns


class _Lines:
    """The lines of a file as text, while their bytes are counted."""

    def __init__(self, file: BinaryIO, span: Span) -> None:
        self._file = file
        self.line, self.position = span.line - 1, span.start
        self.begin_record()
        file.seek(span.start)

    def begin_record(self) -> None:
        """Forget the faults and the length of the last record."""
        self.start, self.first_line = self.position, self.line + 1
        self.after_first = (self.position, self.line)
        self.problem = ""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        left = MAX_RECORD_BYTES - (self.position - self.start)
        text = self._file.readline(max(left, 0) + 1)
        if not text:
            raise StopIteration
        is_first = self.line + 1 == self.first_line
        is_long = len(text) > left
        if is_long and not text.endswith(b"\n"):
            _skip_line(self._file)
        self.position = self._file.tell()
        self.line += 1
        if is_first:
            self.after_first = (self.position, self.line)
        if is_long:
            raise csv.Error(f"more than {MAX_RECORD_BYTES:,} bytes")
        return self._decoded(text.removeprefix(_BYTE_ORDER_MARK) if is_first else text)

    def _decoded(self, text: bytes) -> str:
        if b"\0" in text:
            self.problem = "a NUL character"
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            self.problem = f"byte {error.start} of line {self.line} is not UTF-8"
            return text.decode(errors="replace")

    def back_to_second_line(self) -> None:
        """Continue with the line after the first one of the record."""
        self.position, self.line = self.after_first
        self._file.seek(self.position)


def _records(path: Path, separator: str, span: Span) -> Iterator[_Record]:
    """Yield the records that begin in a span; blank lines are none."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    with open_regular(path) as file:
        lines = _Lines(file, span)
        reader = csv.reader(lines, delimiter=separator, strict=True)
        while span.end is None or lines.position < span.end:
            lines.begin_record()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fields, lines.problem = [str(error)], str(error)
                lines.back_to_second_line()
                reader = csv.reader(lines, delimiter=separator, strict=True)
            if fields:
                yield _Record(
                    start=lines.start, line=lines.first_line, fields=lines.problem or fields
                )


def _skip_line(file: BinaryIO) -> None:
    """Skip the rest of a line."""
    while block := file.readline(_BLOCK_BYTES):
        if block.endswith(b"\n"):
            return
