"""Pictures and captions of evaluation sets, which must not be trained on.

A set is a text file with one entry per line, `pdq:`, `sha256:` or `text:` and 64 hexadecimal
digits, or `id:` and the name of a picture; blank lines and lines that begin with # are skipped. Or
it is a folder of image shards of `launch/build_shards.py`, whose metadata have the hashes of all
its pictures. Names of its pictures are not taken: 0001.png is another picture elsewhere.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
from duckdb import DuckDBPyConnection
from numpy.typing import NDArray

from data_pipelines.duplicates.pdq import hash_of_hex
from data_pipelines.metadata import (
    METADATA_FILES,
    METADATA_FOLDER,
    database,
    parquet_files,
    quoted,
)
from ernie_vilg.errors import InputError

_ENTRY = re.compile(r"(?:(pdq|sha256|text):([0-9a-fA-F]{64})|(id):(.+))")
_MAX_LINE_CHARACTERS = 4096


@dataclass(kw_only=True)
class EvaluationSets:
    """Hashes of all sets; a set is known by its position in the settings."""

    names: tuple[str, ...]
    hashes: NDArray[np.uint64]
    """PDQ hashes, uint64 [n, 4]."""
    sets_of_hashes: NDArray[np.int64]
    """Set of each, int64 [n]."""


@dataclass
class _Entries:
    """Entries of files by kind."""

    pdq: list[str] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    id: list[str] = field(default_factory=list)

    def table(self, kind: str, number: int) -> dict[str, NDArray[np.object_] | NDArray[np.int64]]:
        values = np.empty(len(getattr(self, kind)), dtype=object)
        values[:] = getattr(self, kind)
        return {"entry": values, "set_number": np.full(len(values), number)}


def read_evaluation_sets(
    connection: DuckDBPyConnection, locations: Iterable[str], *, min_quality: int
) -> EvaluationSets:
    """Read the sets.

    Args:
        connection: database that gets the tables `evaluation_sha256`, `evaluation_text` and
            `evaluation_id`, with the columns entry and set_number.
        locations: files and folders.
        min_quality: least quality of hashes in metadata; that of hashes in a list is not known.

    Raises:
        InputError: there is no such file or folder, a line is no entry, there is none, or a folder
            has no metadata.
    """
    names = tuple(locations)
    for kind in ("sha256", "text", "id"):
        connection.execute(
            f"create temp table evaluation_{kind} (entry varchar, set_number bigint)"
        )
    hashes, sets = [np.zeros((0, 4), dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for number, name in enumerate(names):
        path = Path(name)
        if path.is_dir():
            found = _read_folder(connection, path, number, min_quality)
        elif path.is_file():
            found = _read_file(connection, path, number)
        else:
            raise InputError(
                f"curation.deduplication.against: there is no file or folder {name}; name lists of "
                "hashes or ids, or folders of image shards"
            )
        hashes.append(found)
        sets.append(np.full(len(found), number))
    return EvaluationSets(
        names=names, hashes=np.concatenate(hashes), sets_of_hashes=np.concatenate(sets)
    )


def check_evaluation_sets(locations: Iterable[str]) -> None:
    """Raise an error before the work if a set cannot be read; errors as `read_evaluation_sets`."""
    with database() as connection:
        read_evaluation_sets(connection, locations, min_quality=0)


def _read_file(connection: DuckDBPyConnection, path: Path, number: int) -> NDArray[np.uint64]:
    entries = _Entries()
    try:
        with path.open(encoding="utf-8") as file:
            for line_number, line in enumerate(file, start=1):
                text = line.strip()
                if text and not text.startswith("#"):
                    _add(entries, text, f"{path} line {line_number}")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a list of hashes or ids: {error}; write UTF-8") from error
    if not any(vars(entries).values()):
        raise InputError(
            f"curation.deduplication.against: {path} holds no entry; add some, or leave it out"
        )
    for kind in ("sha256", "text", "id"):
        connection.register("given_entries", entries.table(kind, number))
        connection.execute(f"insert into evaluation_{kind} select * from given_entries")
        connection.unregister("given_entries")
    digits = sorted(set(entries.pdq))
    return np.array([hash_of_hex(one) for one in digits], dtype=np.uint64).reshape(-1, 4)


def _add(entries: _Entries, text: str, place: str) -> None:
    found = _ENTRY.fullmatch(text)
    if found is None or len(text) > _MAX_LINE_CHARACTERS:
        raise InputError(
            f"{place} is {text!r:.100}: an entry is pdq:, sha256: or text: with 64 hexadecimal "
            "digits, or id: with the name of a picture"
        )
    if found[3]:
        entries.id.append(found[4].strip())
    else:
        getattr(entries, found[1]).append(found[2].lower())


def _read_folder(
    connection: DuckDBPyConnection, folder: Path, number: int, min_quality: int
) -> NDArray[np.uint64]:
    inner = folder / METADATA_FOLDER
    files = parquet_files(inner if inner.is_dir() else folder, METADATA_FILES)
    try:
        connection.execute(
            "insert into evaluation_sha256 select distinct pixels_sha256, ?::bigint "
            f"from {files} where pixels_sha256 is not null",
            [number],
        )
        found = connection.execute(
            f"select distinct pdq_0, pdq_1, pdq_2, pdq_3 from {files} "
            f"where pdq_quality >= {min_quality} order by all"
        ).fetchnumpy()
        without = connection.execute(
            f"select count(*) as number from {files} where pixels_sha256 is not null "
            "and pdq_quality is null having number > 0"
        ).fetchone()
    except duckdb.Error as error:
        raise InputError(
            f"curation.deduplication.against: {quoted(folder)} has no metadata of "
            f"launch/build_shards.py ({error}); build image shards of the evaluation set"
        ) from error
    if without:
        raise InputError(
            f"curation.deduplication.against: {without[0]} pictures in the metadata of {folder} "
            "have no PDQ hash, so that near ones would not be found: build its shards with "
            "curation.deduplication.near_pictures=0"
        )
    return np.stack([np.asarray(found[f"pdq_{word}"]) for word in range(4)], axis=1)
