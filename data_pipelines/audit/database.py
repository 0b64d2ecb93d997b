"""The metadata of the rows, joined with the samples that the shards really hold.

DuckDB reads the Parquet files of the metadata and the samples' keys and captions, which the pass
over the shards wrote, and spills to disk beyond its memory limit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection

from data_pipelines.audit.checks import MOST_PROBLEMS, Tallies
from data_pipelines.metadata import (
    FINAL_COLUMNS,
    METADATA_FILES,
    METADATA_FOLDER,
    copy_to_parquet,
    database,
    parquet,
    parquet_files,
    pattern_in,
    quoted,
)

SAMPLE_COLUMNS = "{split: 'VARCHAR', shard: 'INTEGER', key: 'VARCHAR', captions: 'VARCHAR'}"
"""Columns of the samples, in DuckDB's form: where each is, and its captions, one per line."""


@contextmanager
def open_database(scratch: Path, *, memory: str, num_threads: int) -> Iterator[DuckDBPyConnection]:
    """Yield a database with a view of the samples.

    Args:
        scratch: folder with `samples/*.jsonl`; temporary files go there too.
        memory: most memory, such as "2GB".
        num_threads: number of threads.
    """
    files = pattern_in(scratch / "samples", "*.jsonl")
    (scratch / "samples").mkdir(exist_ok=True)
    (scratch / "samples" / "none.jsonl").touch()  # without any file there would be no table
    with database(memory=memory, scratch=scratch, threads=max(1, num_threads)) as connection:
        found = (
            f"SELECT * FROM read_json({quoted(files)}, format = 'newline_delimited', "
            f"columns = {SAMPLE_COLUMNS})"
        )
        copy_to_parquet(connection, found, scratch / "samples.parquet")
        table = parquet(scratch / "samples.parquet")
        connection.execute(f"CREATE VIEW samples AS SELECT * FROM {table}")
        yield connection


def add_metadata(connection: DuckDBPyConnection, folder: Path, tallies: Tallies) -> bool:
    """Add a view `rows` of a folder's metadata.

    Returns:
        whether they can be read and have the columns; otherwise the tallies have the reason.
    """
    tally = tallies["metadata"]
    place = folder / METADATA_FOLDER
    try:
        files = parquet_files(place, METADATA_FILES)
        connection.execute(f"CREATE VIEW rows AS SELECT * FROM {files}")
        found = {name for name, *_ in connection.execute("DESCRIBE rows").fetchall()}
        if missing := sorted(FINAL_COLUMNS.keys() - found):
            tally.add([f"{place} lacks the columns {', '.join(missing)}: build the shards again"])
            return False
        # Reads every page, not only the footers.
        scanned = ", ".join(f"max({name})" for name in FINAL_COLUMNS)
        (count, *_) = one_row(connection, f"SELECT count(*), {scanned} FROM rows")
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        tally.add([f"{place} cannot be read ({reason}): copy it again"])
        return False
    tally.add(checked=count)
    return True


def one_row(connection: DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """Return the only row of a query's result."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)


def check_keys(connection: DuckDBPyConnection, tallies: Tallies) -> None:
    """Check that no two samples of a split have the same key."""
    (count,) = one_row(connection, "SELECT count(*) FROM samples")
    twice = (
        "SELECT format('key {} is {} times in {}, in the shards {} to {}', key, count(*), split, "
        "min(shard), max(shard)) FROM samples GROUP BY split, key HAVING count(*) > 1"
    )
    _tally(connection, tallies, "keys", twice, checked=count)


def check_rows(connection: DuckDBPyConnection, tallies: Tallies) -> None:
    """Check that every row is there once and has one verdict, and a reason if it is rejected."""
    (count,) = one_row(connection, "SELECT count(*) FROM rows")
    wrong = (
        "SELECT format('row {} of part {} is {} with reason {}, split {}, shard {}', row, part, "
        "coalesce(verdict, 'null'), coalesce(reason, 'null'), coalesce(split, 'null'), "
        "coalesce(shard::VARCHAR, 'null')) FROM rows WHERE NOT coalesce("
        "(verdict = 'kept' AND reason IS NULL AND shard IS NOT NULL AND key IS NOT NULL AND split "
        "IN ('train', 'held_out')) OR (verdict = 'rejected' AND reason IS NOT NULL AND shard IS "
        "NULL AND key IS NULL), false)"
    )
    _tally(connection, tallies, "rows", wrong, checked=count)
    twice = (
        "SELECT format('row {} of part {} is there {} times', row, part, count(*)) FROM rows "
        "GROUP BY part, row HAVING count(*) > 1"
    )
    _tally(connection, tallies, "rows", twice, checked=0)


def check_kept_rows(
    connection: DuckDBPyConnection, tallies: Tallies, unread: list[tuple[str, int]]
) -> None:
    """Compare kept rows and samples, both ways, and their captions.

    Args:
        connection: with `rows` and `samples`.
        tallies: takes the problems.
        unread: split and position of the shards that cannot be read; their rows are left out.
    """
    connection.execute("CREATE TEMP TABLE unread (split VARCHAR, shard INTEGER)")
    if unread:
        connection.executemany("INSERT INTO unread VALUES (?, ?)", unread)
    kept = (
        "(SELECT split, shard, key, string_agg(caption, chr(10) ORDER BY part, row) AS captions "
        "FROM rows ANTI JOIN unread USING (split, shard) WHERE verdict = 'kept' "
        "GROUP BY split, shard, key)"
    )
    join = f"{kept} AS k FULL JOIN samples AS s USING (split, shard, key)"
    lonely = (
        "SELECT CASE WHEN s.key IS NULL THEN format('sample {} is missing in shard {} of {}, a "
        "kept row names it', key, shard, split) ELSE format('sample {} in shard {} of {} has no "
        f"kept row', key, shard, split) END FROM {join} WHERE s.key IS NULL OR k.key IS NULL"
    )
    (count,) = one_row(connection, "SELECT count(*) FROM samples")
    _tally(connection, tallies, "kept_rows", lonely, checked=count)
    other = (
        "SELECT format('sample {} in shard {} of {} has the caption {} where the metadata have "
        f"{{}}', key, shard, split, s.captions[:80], k.captions[:80]) FROM {join} "
        "WHERE s.captions <> k.captions"
    )
    _tally(connection, tallies, "row_captions", other, checked=count)


def check_hold_out(connection: DuckDBPyConnection, tallies: Tallies) -> None:
    """Check that train and held-out rows share neither a picture nor a cluster."""
    (count,) = one_row(connection, "SELECT count(*) FROM rows WHERE verdict = 'kept'")
    for column, what in (("cluster", "cluster"), ("pixels_sha256", "the picture with pixels")):
        both = (
            f"SELECT format('{what} {{}} is in train and in held_out, in {{}} kept rows', "
            f"{column}::VARCHAR, count(*)) FROM rows WHERE verdict = 'kept' AND {column} IS NOT "
            f"NULL GROUP BY {column} HAVING count(DISTINCT split) > 1"
        )
        _tally(connection, tallies, "hold_out", both, checked=count if column == "cluster" else 0)


def _tally(
    connection: DuckDBPyConnection, tallies: Tallies, name: str, problems: str, *, checked: int
) -> None:
    """Count the rows of a query of sentences; keep the first ones of the alphabet."""
    count, first = one_row(
        connection, f"SELECT count(*), min(p, {MOST_PROBLEMS}) FROM ({problems}) AS problems(p)"
    )
    tallies[name].add(first or [], checked=checked)
    tallies[name].num_problems += count - len(first or [])
