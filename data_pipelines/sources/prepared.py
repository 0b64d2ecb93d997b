"""Tables that are prepared in the work folder, from files that cannot be read in parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.json_lines import line_bounds
from data_pipelines.sources.listed import Content
from data_pipelines.sources.rows import Part
from data_pipelines.sources.text_parts import (
    TextParts,
    identity_of,
    is_listing,
    read_listing,
    span_of,
    write_listing,
)
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.storage.jsonl import line_of

_MOST_BYTES = 1 << 20
"""Longest record that is kept."""

Entries = Callable[[], Iterator[tuple[str, Content]]]
"""Reads place and content of every record of a file."""


@dataclass(frozen=True, kw_only=True)
class PreparedTable:
    """The records of one file, kept as JSON Lines in the work folder."""

    listing: Path
    """The records; their parts are in a file beside."""
    head: dict[str, Any]
    """Everything that the records depend on."""
    rows_per_part: int
    """Records of each part but the last."""

    def fingerprint(self) -> str:
        """Return a hash that changes with the file that was read."""
        return sha256_of_json(self.head)

    def parts(self, source: str) -> Iterator[Part]:
        """Yield the parts in order."""
        parts = TextParts(
            path=self.listing,
            listing=self.listing.with_suffix(".parts"),
            rows_per_part=self.rows_per_part,
            bounds=line_bounds,
        )
        return parts.parts(source)

    def of_part(self, part: Part) -> "PreparedTable":
        """Return the table itself."""
        return self

    def records(self, part: Part) -> Iterator[tuple[str, Content]]:
        """Yield place and content of every record of a part."""
        for line in read_listing(self.listing, span_of(part)):
            if "reason" in line:
                yield line["place"], RejectedError(Reason(line["reason"]), line["detail"])
            else:
                yield line["place"], line["content"]


def prepare(
    path: Path, entries: Entries, *, work: Path, settings: dict[str, Any], rows_per_part: int
) -> PreparedTable:
    """Read a file into the work folder, unless that has been done.

    Args:
        path: the file.
        entries: reads it.
        work: folder for the records.
        settings: everything else that the records depend on.
        rows_per_part: records of each part but the last.
    """
    head = {**identity_of(path), **settings}
    listing = work / "records.jsonl"
    if not is_listing(listing, head):
        write_listing(listing, head, map(_line, entries()))
    return PreparedTable(listing=listing, head=head, rows_per_part=rows_per_part)


def _line(entry: tuple[str, Content]) -> dict[str, Any]:
    place, content = entry
    if not isinstance(content, RejectedError):
        line = {"place": place, "content": dict(content)}
        if len(line_of(line)) <= _MOST_BYTES:
            return line
        content = RejectedError(Reason.CAPTION_TOO_LONG, f"more than {_MOST_BYTES:,} bytes")
    return {"place": place, "reason": str(content.reason), "detail": content.detail}
