"""Reader of JSON Lines: one JSON object per line, as `captions.jsonl` has them."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.listed import Content
from data_pipelines.sources.rows import Part
from data_pipelines.sources.text_parts import TextParts, span_of
from ernie_vilg.storage.json_files import open_regular
from ernie_vilg.storage.jsonl import Span, read_lines

MAX_LINE_BYTES = 1 << 20
"""Length of the longest line that is read."""

_BLOCK_BYTES = 1 << 20
_LINES_TRIED = 100


class JsonLines:
    """The objects of one file."""

    def __init__(self, path: Path, *, listing: Path, rows_per_part: int) -> None:
        """Read nothing yet.

        Args:
            path: the file.
            listing: file in the work folder that keeps the parts.
            rows_per_part: lines of each part but the last.
        """
        self._path = path
        self._parts = TextParts(
            path=path, listing=listing, rows_per_part=rows_per_part, bounds=line_bounds
        )

    def fingerprint(self) -> str:
        """Return a hash that changes with the file."""
        return self._parts.fingerprint()

    def parts(self, source: str) -> Iterator[Part]:
        """Yield the parts in order."""
        return self._parts.parts(source)

    def of_part(self, part: Part) -> "JsonLines":
        """Return the table itself."""
        return self

    def records(self, part: Part) -> Iterator[tuple[str, Content]]:
        """Yield place and content of every line of a part that is not blank."""
        return read_records(self._path, span_of(part))


def read_records(path: Path, span: Span) -> Iterator[tuple[str, Content]]:
    """Yield place and content of every line of a file that is not blank.

    Args:
        path: the file.
        span: lines to read.
    """
    for line in read_lines(path, most_bytes=MAX_LINE_BYTES, is_finite=True, span=span):
        place = f"{path.name} line {line.number}"
        if line.record is not None:
            yield place, line.record
        else:
            excerpt = line.text[:100].decode(errors="replace")
            yield place, RejectedError(Reason.NOT_JSON, f"{excerpt!r} ({line.problem})")


def line_bounds(path: Path, lines_per_part: int) -> Iterator[Span]:
    """Yield the parts of a file of lines."""
    start, line, num_lines = 0, 1, 0
    position = 0
    with open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES):
            offset = 0
            while True:
                missing = lines_per_part - num_lines
                if block.count(b"\n", offset) < missing:
                    num_lines += block.count(b"\n", offset)
                    break
                for _ in range(missing):
                    offset = block.index(b"\n", offset) + 1
                yield Span(start=start, end=position + offset, line=line)
                start, line, num_lines = position + offset, line + lines_per_part, 0
            position += len(block)
    if start < position:
        yield Span(start=start, end=position, line=line)


def first_columns(path: Path) -> list[str]:
    """Return the keys of the first object of a file; none if no line of the first hundred is one.

    Raises:
        InputError: it is no regular file.
    """
    for _, content in islice(read_records(path, Span()), _LINES_TRIED):
        if not isinstance(content, RejectedError):
            return list(content)
    return []
