"""The metadata of raw pairs: one row per picture and caption, in Parquet files.

DuckDB writes and reads them. The same rows give the same bytes.
"""

import glob
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from duckdb import DuckDBPyConnection

from ernie_vilg.storage.files import writing_path

COLUMNS: Mapping[str, str] = {
    # Identity
    "part": "INTEGER",  # number of the task that read the row, over all sources
    "row": "INTEGER",  # position within the part
    "source": "VARCHAR",
    "place": "VARCHAR",
    "picture_id": "VARCHAR",
    "caption": "VARCHAR",  # cleaned and transformed
    "original_caption": "VARCHAR",  # as in the source, where that differs; its beginning, if long
    "transforms": "VARCHAR",  # names joined by commas
    "record": "VARCHAR",  # JSON object
    # Why it was rejected; null where it was not
    "reason": "VARCHAR",
    "detail": "VARCHAR",
    # Measures of the picture
    "width": "INTEGER",
    "height": "INTEGER",
    "is_animated": "BOOLEAN",
    "contrast": "FLOAT",
    "text_area": "FLOAT",
    "nsfw": "FLOAT",
    "watermark": "FLOAT",
    # Measures of the caption
    "characters": "INTEGER",
    "words": "INTEGER",
    "nouns": "INTEGER",
    "han_share": "FLOAT",
    "language": "VARCHAR",
    "language_score": "FLOAT",
    "similarity": "FLOAT",
    # Hashes
    "pixels_sha256": "VARCHAR",  # hexadecimal; of the upright RGB picture, size included
    "text_sha256": "VARCHAR",  # hexadecimal; of the normalised caption
    "pdq_0": "UBIGINT",  # PDQ hash, 256 bits: the most significant 64; only where it is compared
    "pdq_1": "UBIGINT",
    "pdq_2": "UBIGINT",
    "pdq_3": "UBIGINT",
    "pdq_quality": "INTEGER",  # 0 to 100
    # The prepared picture in the work folder
    "picture_offset": "BIGINT",
    "picture_bytes": "INTEGER",
    "picture_crc32": "UINTEGER",
    "is_enlarged": "BOOLEAN",
}
"""Columns of the rows that one task has read, with DuckDB's types. A rejected row has nulls from
where it was rejected on."""

RELATION_COLUMNS: Mapping[str, str] = {
    "part": "INTEGER",
    "row": "INTEGER",
    "reason": "VARCHAR",  # null for the row that is kept of a cluster
    "of_part": "INTEGER",  # the row that is kept instead; null for evaluation sets
    "of_row": "INTEGER",
    "detail": "VARCHAR",  # such as "distance 12", or the evaluation set
    "cluster": "BIGINT",  # number of the cluster of near-duplicate pictures; null outside
}
"""Columns of what deduplication found: one row for every pair that resembles another one."""


_OF_THE_WORK_FOLDER = ("picture_offset", "picture_bytes", "picture_crc32")

FINAL_COLUMNS: Mapping[str, str] = {
    **{name: kind for name, kind in COLUMNS.items() if name not in _OF_THE_WORK_FOLDER},
    "verdict": "VARCHAR",  # kept or rejected
    "of_part": "INTEGER",  # the row that is kept instead of this one
    "of_row": "INTEGER",
    "cluster": "BIGINT",  # number of the cluster of near-duplicate pictures
    # Where the sample of a kept row is; several rows of one picture may share it
    "split": "VARCHAR",  # train, the shards of the folder, or held_out
    "shard": "INTEGER",
    "key": "VARCHAR",
}
"""Columns of the metadata beside finished shards, in metadata/rows-NNNNN.parquet: one row for every
row of the input."""

EXAMPLE_COLUMNS: Mapping[str, str] = {
    "kind": "VARCHAR",  # kept, rejected or cluster
    "part": "INTEGER",
    "row": "INTEGER",
    "source": "VARCHAR",
    "place": "VARCHAR",
    "caption": "VARCHAR",
    "reason": "VARCHAR",
    "detail": "VARCHAR",
    "cluster": "BIGINT",
    "jpeg": "BLOB",  # thumbnail; null where the row was rejected before its picture was read
}
"""Columns of examples.parquet beside finished shards."""

METADATA_FOLDER = "metadata"
METADATA_FILES = "rows-*.parquet"
EXAMPLES_FILE = "examples.parquet"
CURATION_FILE = "curation.json"
REJECTED_FILE = "rejected.jsonl"
HELD_OUT_FOLDER = "held_out"
"""Names within a folder of finished image shards."""


_TYPES: Mapping[str, Any] = {
    "BOOLEAN": np.bool_,
    "INTEGER": np.int64,
    "BIGINT": np.int64,
    "UINTEGER": np.uint64,
    "UBIGINT": np.uint64,
    "FLOAT": np.float64,
    "VARCHAR": object,
    "BLOB": object,
}
"""Types of the arrays that DuckDB gets, which it then casts to the column's type."""


_AS_STORED = "hive_partitioning = false"
"""Option of every Parquet table: no column comes from a folder named like `source=web`."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write rows as a Parquet file, whole or not at all.

    Text that UTF-8 cannot encode, such as the name of a file that is not UTF-8, gets
    backslashes and digits.

    Args:
        path: file to write; its folder exists.
        rows: values by column; a missing one is null.
        columns: all columns with their types, in order.
    """
    arrays: dict[str, np.ndarray] = {}
    selected = []
    for name, kind in columns.items():
        assert kind in _TYPES, kind
        values = [row.get(name) for row in rows]
        arrays[name], arrays[f"{name} is null"] = _arrays_of(values, kind)
        selected.append(
            f'case when "{name} is null" then null else cast("{name}" as {kind}) end as "{name}"'
        )
    with database() as connection:
        # Otherwise the type of a column of objects is that of the first thousand.
        connection.execute(f"set pandas_analyze_sample = {max(len(rows), 1)}")
        connection.register("given", arrays)
        copy_to_parquet(connection, f"select {', '.join(selected)} from given", path)


def database(
    *, memory: str | None = None, scratch: Path | None = None, threads: int = 1
) -> DuckDBPyConnection:
    """Open a database in memory.

    Args:
        memory: most memory, such as "2GB"; None is DuckDB's own limit.
        scratch: folder for what does not fit into memory; without one nothing is written.
        threads: number of threads. Only one gives Parquet files the same bytes on every machine.
    """
    if memory is None and scratch is None and threads == 1:
        return _small_database().cursor()  # with tables of its own
    return _open_database(memory=memory, scratch=scratch, threads=threads)


@cache  # opening one takes longer than most queries
def _small_database() -> DuckDBPyConnection:
    return _open_database(memory=None, scratch=None, threads=1)


def _open_database(*, memory: str | None, scratch: Path | None, threads: int) -> DuckDBPyConnection:
    connection = duckdb.connect(
        config={
            "threads": threads,
            "temp_directory": "" if scratch is None else str(scratch),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    if memory is not None:
        connection.execute(f"set memory_limit = '{memory}'")
    return connection


def copy_to_parquet(connection: DuckDBPyConnection, query: str, path: Path) -> None:
    """Write the result of a query as a Parquet file, whole or not at all.

    Args:
        connection: the database.
        query: a SELECT whose rows have a fixed order.
        path: file to write; its folder exists.
    """
    temporary = writing_path(path)
    connection.execute(f"copy ({query}) to {quoted(temporary)} (format parquet, compression zstd)")
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def parquet(*paths: Path) -> str:
    """Return the SQL table of Parquet files with the same columns."""
    files = ", ".join(quoted(glob.escape(str(path))) for path in paths)
    return f"read_parquet([{files}], {_AS_STORED})"


def parquet_files(folder: Path, pattern: str) -> str:
    """Return the SQL table of all Parquet files in a folder whose names match a pattern."""
    return parquet_at(pattern_in(folder, pattern))


def pattern_in(folder: Path, pattern: str) -> str:
    """Return the pattern of files in a folder, whose own name may hold `*` or `[`."""
    return f"{glob.escape(str(folder))}/{pattern}"


def parquet_at(pattern: str) -> str:
    """Return the SQL table of all Parquet files whose paths match a pattern."""
    return f"read_parquet({quoted(pattern)}, {_AS_STORED})"


def quoted(value: object) -> str:
    """Return a text or path as a literal of SQL."""
    return "'" + str(value).replace("'", "''") + "'"


def _arrays_of(values: list[Any], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a column, with something in place of null, and where null is."""
    is_null = np.array([value is None for value in values], bool)
    if kind in ("VARCHAR", "BLOB"):
        column = np.empty(len(values), object)
        empty: str | bytes = "" if kind == "VARCHAR" else b""
        column[:] = [empty if value is None else _encodable(value) for value in values]
        return column, is_null
    return np.array([0 if value is None else value for value in values], _TYPES[kind]), is_null


def _encodable(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode()
    return value
