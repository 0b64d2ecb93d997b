"""The metadata of the rows, joined with the samples that the shards really hold.

DuckDB reads the Parquet files of the metadata and the samples' keys and captions, which the pass
over the shards wrote, and spills to disk beyond its memory limit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from data_pipelines.audit.checks import MOST_PROBLEMS, Tallies
from data_pipelines.metadata import COLUMNS

Database = duckdb.DuckDBPyConnection

METADATA_FOLDER = "metadata"
WORK_COLUMNS = ("picture_offset", "picture_bytes", "picture_crc32")
"""Columns that only the work folder of a build has."""
VERDICT_COLUMNS = ("verdict", "cluster", "split", "shard", "key")
"""Columns that the final metadata add."""


@contextmanager
def open_database(scratch: Path, *, memory: str, num_threads: int) -> Iterator[Database]:
    """Yield a database with a table of the samples.

    Args:
        scratch: folder with `samples/*.jsonl`; temporary files go there too.
        memory: most memory, such as "2GB".
        num_threads: number of threads.
    """
    settings = {
        "memory_limit": memory,
        "threads": max(1, num_threads),
        "temp_directory": str(scratch / "spilled"),
        "preserve_insertion_order": False,
    }
    with duckdb.connect(str(scratch / "samples.duckdb"), config=settings) as database:
        database.execute(
            "CREATE TABLE samples (split VARCHAR, shard VARCHAR, key VARCHAR, captions VARCHAR)"
        )
        if any((scratch / "samples").glob("*.jsonl")):
            database.execute(
                "INSERT INTO samples SELECT split, shard, key, captions FROM read_json(?, "
                "format='newline_delimited', columns={split: 'VARCHAR', shard: 'VARCHAR', "
                "key: 'VARCHAR', captions: 'VARCHAR'})",
                [str(scratch / "samples" / "*.jsonl")],
            )
        yield database


def add_metadata(database: Database, folder: Path, tallies: Tallies) -> bool:
    """Add a view `rows` of a folder's metadata.

    Returns:
        whether they can be read and have the columns; otherwise the tallies have the reason.
    """
    tally = tallies["metadata"]
    files = str(folder / METADATA_FOLDER / "*.parquet")
    try:
        # A placeholder is not allowed in a view.
        quoted = files.replace("'", "''")
        database.execute(f"CREATE VIEW rows AS SELECT * FROM read_parquet('{quoted}')")
        found = {name for name, *_ in database.execute("DESCRIBE rows").fetchall()}
        wanted = [*(set(COLUMNS) - set(WORK_COLUMNS)), *VERDICT_COLUMNS]
        if missing := sorted(set(wanted) - found):
            tally.add([f"{files} lack the columns {', '.join(missing)}: build the shards again"])
            return False
        # Reads and checks every page, not only the footers.
        scanned = ", ".join(f"count({name})" for name in sorted(found))
        (count, *_) = one_row(database, f"SELECT count(*), {scanned} FROM rows")
    except duckdb.Error as error:
        tally.add([f"{files} cannot be read ({str(error).splitlines()[0]}): copy them again"])
        return False
    tally.add(checked=count)
    return True


def one_row(database: Database, query: str, values: object = None) -> tuple[Any, ...]:
    """Return the only row of a query's result."""
    row = database.execute(query, values).fetchone()
    assert row is not None
    return tuple(row)


def check_keys(database: Database, tallies: Tallies) -> None:
    """Check that no two samples of a split have the same key."""
    (count,) = one_row(database, "SELECT count(*) FROM samples")
    twice = "SELECT split, key, min(shard), max(shard), count(*) FROM samples GROUP BY 1, 2 " \
        "HAVING count(*) > 1"  # fmt: skip
    _tally(
        database,
        tallies,
        "keys",
        f"SELECT format('key {{}} occurs {{}} times in {{}}, in {{}} and {{}}', {_columns(2)}, "
        f"{_columns(5)}, {_columns(1)}, {_columns(3)}, {_columns(4)}) FROM ({twice}) "
        "AS t(c1, c2, c3, c4, c5)",
        checked=count,
    )


def _columns(number: int) -> str:
    return f"c{number}"


def check_rows(database: Database, tallies: Tallies) -> None:
    """Check that every row has one verdict, and a reason where it is rejected."""
    (count,) = one_row(database, "SELECT count(*) FROM rows")
    wrong = (
        "SELECT format('row {} of part {} is {} with reason {} in shard {}', row, part, "
        "coalesce(verdict, 'null'), coalesce(reason, 'null'), coalesce(shard, 'null')) FROM rows "
        "WHERE NOT coalesce((verdict = 'kept' AND reason IS NULL AND shard IS NOT NULL AND key IS "
        "NOT NULL AND split IN ('train', 'held_out')) OR (verdict = 'rejected' AND reason IS NOT "
        "NULL AND shard IS NULL AND key IS NULL), false)"
    )
    _tally(database, tallies, "rows", wrong, checked=count)
    twice = (
        "SELECT format('row {} of part {} is there {} times', row, part, count(*)) FROM rows "
        "GROUP BY part, row HAVING count(*) > 1"
    )
    _tally(database, tallies, "rows", twice, checked=0)


def check_kept_rows(database: Database, tallies: Tallies, unread: list[tuple[str, str]]) -> None:
    """Compare kept rows and samples, both ways, and their captions.

    Args:
        database: with `rows` and `samples`.
        tallies: takes the problems.
        unread: split and shard of the shards that cannot be read; their rows are left out.
    """
    database.execute("CREATE TEMP TABLE unread (split VARCHAR, shard VARCHAR)")
    if unread:
        database.executemany("INSERT INTO unread VALUES (?, ?)", unread)
    database.execute(
        "CREATE TEMP TABLE kept AS SELECT split, shard, key, string_agg(caption, chr(10) ORDER BY "
        "part, row) AS captions FROM rows WHERE verdict = 'kept' AND (split, shard) NOT IN "
        "(SELECT (split, shard) FROM unread) GROUP BY split, shard, key"
    )
    (count,) = one_row(database, "SELECT count(*) FROM samples")
    join = (
        "FROM kept FULL JOIN (SELECT *, true AS is_there FROM samples) AS s USING (split, shard, "
        "key)"
    )
    lonely = (
        "SELECT CASE WHEN is_there IS NULL THEN format('sample {} is missing in {} {}, a kept row "
        "names it', key, split, shard) ELSE format('sample {} of {} {} has no kept row', key, "
        f"split, shard) END {join} WHERE is_there IS NULL OR kept.captions IS NULL"
    )
    _tally(database, tallies, "kept_rows", lonely, checked=count)
    other = (
        "SELECT format('sample {} of {} {} has the caption {} where its rows have {}', key, split, "
        f"shard, s.captions[:80], kept.captions[:80]) {join} WHERE s.captions <> kept.captions"
    )
    _tally(database, tallies, "row_captions", other, checked=count)


def check_hold_out(database: Database, tallies: Tallies) -> None:
    """Check that train and held-out rows share neither a picture nor a cluster."""
    (count,) = one_row(database, "SELECT count(*) FROM rows WHERE verdict = 'kept'")
    for column, what in (("cluster", "cluster"), ("pixels_sha256", "picture with pixels")):
        both = (
            f"SELECT format('{what} {{}} is in train and held_out, in {{}} kept rows', "
            f"{column}::VARCHAR, count(*)) FROM rows WHERE verdict = 'kept' AND {column} IS NOT "
            f"NULL GROUP BY {column} HAVING count(DISTINCT split) > 1"
        )
        _tally(database, tallies, "hold_out", both, checked=count if column == "cluster" else 0)


def _tally(database: Database, tallies: Tallies, name: str, problems: str, *, checked: int) -> None:
    """Count the rows of a query of sentences; take the first ones in the order of the alphabet."""
    (count,) = one_row(database, f"SELECT count(*) FROM ({problems})")
    first = database.execute(
        f"SELECT * FROM ({problems}) AS p(sentence) ORDER BY sentence LIMIT {MOST_PROBLEMS}"
    ).fetchall()
    tallies[name].add([sentence for (sentence,) in first], checked=checked)
    tallies[name].num_problems += count - len(first)
