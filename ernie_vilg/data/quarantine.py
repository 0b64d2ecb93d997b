"""Samples that a run leaves out, named in a file of its run folder.

Each line of `quarantine.jsonl` names a sample by its key, and by shard and data set where the key
alone is not enough: {"key": "00000123", "shard": "tokens-00000.tar", "reason": "watermark"}. The
file is read once, when the run starts; every rank has the same content, so all leave out the same.
A sample left out is replaced as a damaged one is: by another that its position chooses, and no
other position changes.

Source: ours.
"""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_json

QUARANTINE_NAME = "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True)
class QuarantineEntry:
    """One sample to leave out."""

    key: str
    """The sample's."""
    shard: str | None = None
    """File of its shard; None leaves out the key in every shard."""
    data_set: str | None = None
    """Name of its data set; None leaves out the key in every data set."""
    reason: str = ""
    """Why, for people."""


@dataclass(frozen=True, kw_only=True)
class Quarantine:
    """All samples to leave out."""

    entries: tuple[QuarantineEntry, ...] = ()
    """In the order of the file."""

    def digest(self) -> str:
        """Return the SHA-256 of what is left out, 64 hexadecimal digits; reasons do not count."""
        names = {(entry.data_set or "", entry.shard or "", entry.key) for entry in self.entries}
        return sha256_of_json(sorted(names))

    def holds(self, data_set: str, shard: str, key: str) -> bool:
        """Return whether a sample is left out."""
        return any(
            entry.shard in (None, shard) and entry.data_set in (None, data_set)
            for entry in self._by_key.get(key, ())
        )

    @cached_property
    def _by_key(self) -> dict[str, list[QuarantineEntry]]:
        by_key: dict[str, list[QuarantineEntry]] = {}
        for entry in self.entries:
            by_key.setdefault(entry.key, []).append(entry)
        return by_key


def read_quarantine(path: Path) -> Quarantine:
    """Read a quarantine; a file that is not there names nothing.

    Raises:
        InputError: a line is not of the form above; the message has its number.
    """
    if not path.exists():
        return Quarantine()
    lines = path.read_text(encoding="utf-8").splitlines()
    return Quarantine(
        entries=tuple(
            _read_line(line, f"{path}:{number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        )
    )


def _read_line(line: str, place: str) -> QuarantineEntry:
    names = {field.name for field in fields(QuarantineEntry)}
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error}): write one object per line") from error
    is_legal = (
        isinstance(content, dict)
        and "key" in content
        and set(content) <= names
        and all(value is None or isinstance(value, str) for value in content.values())
        and content["key"]
    )
    if not is_legal:
        raise InputError(
            f'{place}: {line.strip()[:200]!r} is no {{"key": "...", "shard": "...", "data_set": '
            '"...", "reason": "..."} with texts for values, of which only key is required: correct '
            "the line"
        )
    return QuarantineEntry(
        key=content["key"],
        shard=content.get("shard") or None,
        data_set=content.get("data_set") or None,
        reason=content.get("reason") or "",
    )
