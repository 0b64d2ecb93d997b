"""Sources whose rows stand in a table: one picture's name and its captions per record."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from data_pipelines.captions import text_of as joined_text
from data_pipelines.rejections import Reason, RejectedError, Rejection
from data_pipelines.sources.pictures import DeferredPicture, PictureFolder
from data_pipelines.sources.rows import Part, Picture, RawPair
from ernie_vilg.storage.json_files import kind_of

Content = Mapping[str, Any] | RejectedError
"""A record by column, or the reason why it cannot be read."""


class Table(Protocol):
    """Records in one or several files."""

    def fingerprint(self) -> str:
        """Return a hash that changes with the records."""
        ...

    def parts(self, source: str) -> Iterator[Part]:
        """Yield the parts in order.

        Args:
            source: name of the source, for the parts.
        """
        ...

    def of_part(self, part: Part) -> "Table":
        """Return the table as the task of one part needs it."""
        ...

    def records(self, part: Part) -> Iterator[tuple[str, Content]]:
        """Yield the place and content of every record of a part, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class ListedSource:
    """A table whose records name pictures.

    The very same picture with the very same caption again in one part is DUPLICATE_KEY; repetition
    across parts is found by deduplication.
    """

    name: str
    """Name in the settings."""
    table: Table
    """The records."""
    pictures: PictureFolder
    """Folders of the pictures."""
    image_key: str
    """Column of the picture's path; the column may also hold the file itself."""
    caption_key: str
    """Column of the caption, or of a list of captions; with a question, of its answers."""
    question_key: str | None = None
    """Column of the question that the texts of `caption_key` answer; None for captions."""

    def fingerprint(self) -> str:
        """Return a hash that changes when the list of rows changes."""
        return self.table.fingerprint()

    def parts(self) -> Iterator[Part]:
        """Yield the parts in order."""
        return self.table.parts(self.name)

    def of_part(self, part: Part) -> "ListedSource":
        """Return the source with the table as one part needs it."""
        return replace(self, table=self.table.of_part(part))

    def rows(self, part: Part) -> Iterator[RawPair | Rejection]:
        """Yield a row for every caption of every record of a part."""
        return numbered(_unrepeated(self._entries(part)))

    def _entries(self, part: Part) -> Iterator["Entry"]:
        for place, content in self.table.records(part):
            try:
                yield from self._entries_of(place, content)
            except RejectedError as error:
                yield place, error

    def _entries_of(self, place: str, content: Content) -> Iterator["Entry"]:
        if isinstance(content, RejectedError):
            raise content
        captions = captions_of(content, self.caption_key)
        question = None if self.question_key is None else text_of(content, self.question_key)
        picture: tuple[str, Picture] | RejectedError
        try:
            picture = self._picture_of(content)
        except RejectedError as error:
            picture = error
        for caption in captions:
            if isinstance(caption, RejectedError):
                yield place, caption
            elif isinstance(picture, RejectedError):
                yield place, picture
            else:
                record = {**content, self.caption_key: caption}
                if not isinstance(record[self.image_key], str):  # the file itself
                    record[self.image_key] = picture[0]
                yield place, Pair(*picture, joined_text(caption, question), record)

    def _picture_of(self, content: Mapping[str, Any]) -> tuple[str, Picture]:
        value = content.get(self.image_key)
        if isinstance(value, EmbeddedPicture):
            content_of_file = value.content
            return value.name, DeferredPicture(name=value.name, get=lambda: content_of_file)
        return self.pictures.find(text_of(content, self.image_key))


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture whose file stands in the table itself."""

    name: str
    """Name of the picture in its source."""
    content: bytes
    """Content of the file."""


@dataclass(frozen=True)
class Pair:
    """A pair that has no number yet."""

    picture_id: str
    """Name of the picture in its source."""
    picture: Picture
    """File of the picture."""
    caption: str
    """Text as `captions.text_of` makes it from the source."""
    record: Mapping[str, Any]
    """Everything that the source says about the row."""


Entry = tuple[str, Pair | RejectedError]
"""Place of a row, and its pair or why there is none."""


def numbered(entries: Iterable[Entry]) -> Iterator[RawPair | Rejection]:
    """Yield the rows of a part with their numbers."""
    for row, (place, entry) in enumerate(entries):
        if isinstance(entry, RejectedError):
            yield Rejection(row=row, place=place, reason=entry.reason, detail=entry.detail)
        else:
            yield RawPair(
                row=row,
                place=place,
                picture_id=entry.picture_id,
                picture=entry.picture,
                caption=entry.caption,
                record=entry.record,
            )


def _unrepeated(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the rows of a part; a pair that an earlier row of it has is rejected."""
    places: dict[tuple[str, str], str] = {}
    for place, entry in entries:
        if isinstance(entry, Pair):
            identity = (entry.picture_id, entry.caption)
            if identity in places:
                detail = f"{entry.picture_id!r:.300} has the same caption at {places[identity]}"
                yield place, RejectedError(Reason.DUPLICATE_KEY, detail)
                continue
            places[identity] = place
        yield place, entry


def captions_of(record: Mapping[str, Any], key: str) -> list[str | RejectedError]:
    """Return the captions of a record, each a string or why it is none.

    Raises:
        RejectedError: there is none, or an empty list.
    """
    value = record.get(key)
    if not isinstance(value, list | tuple):
        return [text_of(record, key)]
    if not value:
        raise RejectedError(Reason.MISSING_FIELD, f"{key!r} is an empty list")
    return [
        item if isinstance(item, str) else _not_a_string(f"{key!r} holds", item) for item in value
    ]


def text_of(record: Mapping[str, Any], key: str) -> str:
    """Return a string of a record.

    Raises:
        RejectedError: it is missing or of another kind.
    """
    if key not in record:
        raise RejectedError(Reason.MISSING_FIELD, f"there is no {key!r}")
    value = record[key]
    if not isinstance(value, str):
        raise _not_a_string(f"{key!r} is", value)
    return value


def _not_a_string(what: str, value: Any) -> RejectedError:
    return RejectedError(
        Reason.MISSING_FIELD, f"{what} {kind_of(value)} where a string is required"
    )
