"""Parts of a text file: where they begin, found in one pass and kept in a listing.

The listing is a JSON Lines file in the work folder. Its first line names the file's size and time,
so that a restart scans nothing again and a changed file is noticed; each further line is a part.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipelines.sources.rows import Part
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_json, written_file
from ernie_vilg.storage.jsonl import WHOLE_FILE, Span, line_of, read_lines

_HEAD = "listing_of"


@dataclass(frozen=True, kw_only=True)
class TextParts:
    """The parts of one text file."""

    path: Path
    """The text file."""
    listing: Path
    """File in the work folder that keeps the parts."""
    rows_per_part: int
    """Records of each part but the last."""
    bounds: Callable[[Path, int], Iterator[Span]]
    """Finds the parts, given the file and `rows_per_part`."""

    def fingerprint(self) -> str:
        """Return a hash of the file's size and time."""
        return sha256_of_json(identity_of(self.path))

    def parts(self, source: str) -> Iterator[Part]:
        """Yield the parts in order; find them first if no listing does."""
        head = {**identity_of(self.path), "rows_per_part": self.rows_per_part}
        if not is_listing(self.listing, head):
            found = self.bounds(self.path, self.rows_per_part)
            write_listing(self.listing, head, (asdict(span) for span in found))
        for span in read_listing(self.listing):
            yield Part(source=source, file=self.path.name, **span)


def identity_of(path: Path) -> dict[str, Any]:
    """Return what tells a version of a file from another: its path, size and time."""
    status = os.stat(path)
    return {
        "path": os.path.realpath(path),
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
    }


def span_of(part: Part) -> Span:
    """Return the lines of a part."""
    return Span(start=part.start, end=part.end, line=part.line)


def write_listing(path: Path, head: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a listing whole, a line at a time.

    Args:
        path: file in the work folder.
        head: everything that the listing depends on.
        lines: its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_file(path) as file:
        file.write(line_of({_HEAD: head}))
        for line in lines:
            file.write(line_of(line))


def is_listing(path: Path, head: Mapping[str, Any]) -> bool:
    """Return whether a listing with this head is there."""
    if not path.is_file():
        return False
    first = next(read_lines(path), None)
    return first is not None and first.record == {_HEAD: head}


def read_listing(path: Path, span: Span = WHOLE_FILE) -> Iterator[dict[str, Any]]:
    """Yield the content of a listing without its first line, or of some lines of it.

    Raises:
        InputError: the listing is damaged.
    """
    for line in read_lines(path, span=span):
        if line.record is None or not line.is_whole:
            raise InputError(f"{path} line {line.number} is damaged: remove {path.parent}")
        if line.number > 1:
            yield line.record
