"""The interface of readers of raw pairs: parts of a source, and the rows of each.

A row is one picture and one caption; a picture with five captions is five rows one after another.
A row that cannot be read is a `Rejection`, so that rows = pairs + rejections holds for every part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from data_pipelines.rejections import Rejection

MAX_PICTURE_BYTES = 64 << 20
"""Largest picture file that is read."""


class Picture(Protocol):
    """A picture file that has not been read yet."""

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    def read(self) -> bytes:
        """Return the content of the file; call it before the iterator of its rows ends.

        Raises:
            RejectedError: it is missing, no regular file, or larger than MAX_PICTURE_BYTES.
            RemoteError: an object store or web server does not answer.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RawPair:
    """One picture and one caption, neither of them checked."""

    row: int
    """Position among the rows of its part, from 0."""
    place: str
    """Place of the row, for people, such as "captions.jsonl line 12"."""
    picture_id: str
    """Name of the picture in its source: rows with the same name have the same picture."""
    picture: Picture
    """File of the picture."""
    caption: str
    """Caption as the source has it, or a question and its answer as one text
    (`data_pipelines.captions.text_of`)."""
    record: Mapping[str, Any]
    """Everything that the source says about the row, as a JSON object."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some consecutive rows of a source, which one task reads."""

    source: str
    """Name of the source."""
    file: str
    """File that holds the rows: a name within the source, or a path."""
    start: int = 0
    """Beginning of the rows: a byte of a text file, a row of a table; 0 for a whole file."""
    end: int | None = None
    """End of the rows, in the same unit; None for the end of the file."""
    line: int = 1
    """Number of the first line of a text file, for messages."""
    first_row: int | None = None
    """Number of rows before this part, where the reader knows it."""
    rows: int | None = None
    """Number of rows, where the reader knows it; a row that cannot be read counts."""


class Source(Protocol):
    """Raw pairs in one layout. Sources are picklable: every task gets one."""

    @property
    def name(self) -> str:
        """Name in the settings."""
        ...

    def fingerprint(self) -> str:
        """Return a hash that changes when the list of rows changes.

        It may depend on modification times: use it for restarts, not in the output.
        """
        ...

    def parts(self) -> Iterator[Part]:
        """Yield the parts in order. They depend on the source and `rows_per_part` alone."""
        ...

    def of_part(self, part: Part) -> "Source":
        """Return the source as the task of one part needs it, which does not grow with the parts.

        Every task is pickled with its source.
        """
        ...

    def rows(self, part: Part) -> Iterator[RawPair | Rejection]:
        """Yield the rows of a part in order; memory does not grow with their number."""
        ...
