"""Samples that a run excludes, named in a file of its run folder.

Each line of `quarantine.jsonl` names a sample by its key, and by shard and data set where the key
alone is ambiguous: {"key": "00000123", "shard": "tokens-00000.tar", "reason": "watermark"}. The
file is read once, when the run starts; every rank reads the same content, so all exclude the same
samples. An excluded sample is replaced as a damaged one is: by another that its position chooses,
and no other position changes.

A line that excludes nothing is logged, not refused: its data set may have left the mixture. Names
of data sets and shards are checked when the run starts, keys when their shard is read.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.storage.jsonl import read_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QuarantineEntry:
    """One line of the file: an excluded sample."""

    key: str
    """Key of the sample."""
    shard: str | None = None
    """File of the sample's shard; None excludes the key in every shard."""
    data_set: str | None = None
    """Name of the sample's data set; None excludes the key in every data set."""
    reason: str = ""
    """Reason of the exclusion, for people."""

    def __str__(self) -> str:
        """Return the sample's name for messages."""
        named = {"data_set": self.data_set, "shard": self.shard, "key": self.key}
        return ", ".join(f"{name} {value!r}" for name, value in named.items() if value)


@dataclass(frozen=True, kw_only=True)
class Quarantine:
    """All excluded samples of a run."""

    entries: tuple[QuarantineEntry, ...] = ()
    """Lines in the order of the file."""

    def digest(self) -> str:
        """Return the SHA-256 of the excluded samples, 64 hexadecimal digits, without reasons."""
        names = {(entry.data_set or "", entry.shard or "", entry.key) for entry in self.entries}
        return sha256_of_json(sorted(names))

    def holds(self, data_set: str, shard: str, key: str) -> bool:
        """Return whether a sample is excluded."""
        return any(
            entry.shard in (None, shard) and entry.data_set in (None, data_set)
            for entry in self._by_key.get(key, ())
        )

    def not_in(self, shards: Mapping[str, Collection[str]]) -> dict[QuarantineEntry, str]:
        """Return the entries that can exclude nothing, and why.

        Args:
            shards: files of the run's shards, by data set.
        """
        reasons = {}
        for entry in self.entries:
            if entry.data_set is not None and entry.data_set not in shards:
                reasons[entry] = f"the run's data sets are {', '.join(shards)}"
            elif entry.shard is not None:
                places = shards if entry.data_set is None else [entry.data_set]
                if not any(entry.shard in shards[place] for place in places):
                    reasons[entry] = f"there is no such shard in {', '.join(places)}"
        return reasons

    def indices_in(
        self, data_set: str, shard: str, keys: Sequence[str], location: str
    ) -> frozenset[int]:
        """Return the indices of a shard's excluded samples; warn of keys that it does not have.

        Args:
            data_set: name of the data set.
            shard: file of the shard.
            keys: keys of the shard's samples in order.
            location: the shard's name for messages.
        """
        excluded = {
            index: key for index, key in enumerate(keys) if self.holds(data_set, shard, key)
        }
        found = set(excluded.values())
        for entry in self.entries:
            is_here = entry.shard == shard and entry.data_set in (None, data_set)
            if is_here and entry.key not in found:
                logger.warning(
                    "the quarantine's line of %s excludes nothing: %s has no such key; correct the "
                    "line",
                    entry,
                    location,
                )
        return frozenset(excluded)

    @cached_property
    def _by_key(self) -> dict[str, list[QuarantineEntry]]:
        by_key: dict[str, list[QuarantineEntry]] = {}
        for entry in self.entries:
            by_key.setdefault(entry.key, []).append(entry)
        return by_key


def read_quarantine(path: Path) -> Quarantine:
    """Read a quarantine; a missing file excludes nothing.

    Raises:
        InputError: the path is no file, or a line has another form; the message has its number.
    """
    if not os.path.lexists(path):
        return Quarantine()
    lines = read_lines(path)
    return Quarantine(entries=tuple(_entry(line.require(), line.name) for line in lines))


def _entry(content: Mapping[str, Any], place: str) -> QuarantineEntry:
    names = {field.name for field in fields(QuarantineEntry)}
    is_legal = (
        "key" in content
        and set(content) <= names
        and all(value is None or isinstance(value, str) for value in content.values())
        and content["key"]
    )
    if not is_legal:
        raise InputError(
            f'{place} is {str(content)[:200]}, not {{"key": "...", "shard": "...", "data_set": '
            '"...", "reason": "..."} with texts for values, of which only key is required: correct '
            "the line"
        )
    return QuarantineEntry(
        key=content["key"],
        shard=content.get("shard") or None,
        data_set=content.get("data_set") or None,
        reason=content.get("reason") or "",
    )
