"""Translations that a person made elsewhere: captions out, captions in.

The file of translations becomes a database in the work folder once; every process looks captions
up there, so its memory does not grow with the number of captions.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.curation.models.translation import clean_or_none
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.storage.jsonl import read_lines

_MAGIC = b"SQLite format 3\0"
_MOST_LINE_BYTES = 1 << 20


class FileTranslator:
    """Looks translations up: a `Translator`."""

    why_none = "curation.translation_file does not translate it"

    def __init__(self, lookup: Path) -> None:
        """Open a database of `write_lookup`."""
        with lookup.open("rb") as file:
            assert file.read(len(_MAGIC)) == _MAGIC, "prepare_curation makes it from the file"
        self._database = sqlite3.connect(f"{lookup.absolute().as_uri()}?immutable=1", uri=True)

    def translate(self, captions: Sequence[str]) -> list[str | None]:
        """Return translations of clean captions, clean as well; None where there is none."""
        return [self._find(caption) for caption in captions]

    def _find(self, caption: str) -> str | None:
        query = "SELECT translation FROM translations WHERE text = ? ORDER BY line LIMIT 1"
        row = self._database.execute(query, (caption,)).fetchone()
        return None if row is None else str(row[0])


def write_lookup(translations: Path, folder: Path) -> Path:
    """Make the database of a file of translations, where it is not made yet.

    Args:
        translations: JSON Lines, {"text": ..., "translation": ...}. Texts are cleaned as captions
            are; an empty translation counts as none.
        folder: existing folder for the database.

    Returns:
        path of the database, whose name holds the hash of the file.

    Raises:
        InputError: a line has another form, or a text has two different translations.
    """
    lookup = folder / f"translations-{sha256_of_file(translations)[:16]}.sqlite"
    if lookup.exists():
        return lookup
    unfinished = folder / f".writing-{lookup.name}-{os.getpid()}"
    unfinished.unlink(missing_ok=True)
    try:
        _fill(unfinished, translations)
        unfinished.rename(lookup)
    finally:
        unfinished.unlink(missing_ok=True)
    return lookup


def _fill(path: Path, translations: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = OFF")  # a killed writer's file is not used
        database.execute("PRAGMA synchronous = OFF")
        database.execute(
            "CREATE TABLE translations (line INTEGER PRIMARY KEY, text TEXT, translation TEXT)"
        )
        database.executemany("INSERT INTO translations VALUES (?, ?, ?)", _rows(translations))
        database.execute("CREATE INDEX texts ON translations (text)")  # sorts outside memory
        twice = database.execute(
            "SELECT a.line, b.line FROM translations a JOIN translations b ON a.text = b.text "
            "WHERE a.line < b.line AND a.translation <> b.translation ORDER BY 1, 2 LIMIT 1"
        ).fetchone()
        if twice is not None:
            raise InputError(
                f"curation.translation_file={translations} lines {twice[0]} and {twice[1]} "
                "translate the same text in two ways: remove one of them"
            )
        database.commit()


def _rows(translations: Path) -> Iterator[tuple[int, str, str]]:
    for line in read_lines(translations, most_bytes=_MOST_LINE_BYTES):
        record = line.require()
        text, translation = record.get("text"), record.get("translation")
        if not isinstance(text, str) or not isinstance(translation, str):
            raise InputError(
                f'{line.name} is not {{"text": "...", "translation": "..."}}: write one such '
                "object per line"
            )
        clean_text, clean_translation = clean_or_none(text), clean_or_none(translation)
        if clean_text is not None and clean_translation is not None:
            yield line.number, clean_text, clean_translation
