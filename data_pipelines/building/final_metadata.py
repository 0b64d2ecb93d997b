"""The metadata beside finished shards: what became of every row of the input.

One task per part of the input writes them, so that no process holds all rows. What they count is
compared with what the readers counted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from data_pipelines.building.folders import ROWS_FOLDER, metadata_folder, part_name
from data_pipelines.building.records import Finished, Work, once
from data_pipelines.building.select import VERDICTS_FILE
from data_pipelines.metadata import (
    FINAL_COLUMNS,
    copy_to_parquet,
    database,
    parquet,
)
from ernie_vilg.storage.jsonl import line_of

MAX_LISTED = 10_000
"""Most rejected rows that are listed for people."""

_OF_THE_SELECTION = {
    "reason": "coalesce(rows.reason, verdicts.reason)",
    "detail": "coalesce(rows.detail, verdicts.detail)",
    "verdict": "case when rows.reason is null and verdicts.reason is null then 'kept' "
    "else 'rejected' end",
    "of_part": "verdicts.of_part",
    "of_row": "verdicts.of_row",
    "cluster": "verdicts.cluster",
    "split": "verdicts.split",
    "shard": "verdicts.shard",
    "key": "printf('%08d', verdicts.number)",
}


@dataclass(frozen=True, kw_only=True)
class MetadataTask:
    """One part whose metadata are to be written."""

    number: int
    """Number of the part over all sources."""
    work_folder: Path


def write_metadata(task: MetadataTask) -> Finished:
    """Write the metadata of a part unless that is done.

    Returns:
        its record: `rows`, `kept` and `rejected` by reason, as the file has them.
    """
    return once(task.work_folder, f"metadata-{task.number:05d}", lambda: _write(task))


def _write(task: MetadataTask) -> Work:
    rows = parquet(task.work_folder / ROWS_FOLDER / f"{part_name(task.number)}.parquet")
    verdicts = parquet(task.work_folder / VERDICTS_FILE)
    path = metadata_folder(task.work_folder) / f"rows-{task.number:05d}.parquet"
    columns = ", ".join(
        f'{_OF_THE_SELECTION.get(name, f"rows.{name}")}::{kind} as "{name}"'
        for name, kind in FINAL_COLUMNS.items()
    )
    with database() as connection:
        copy_to_parquet(
            connection,
            f"select {columns} from {rows} as rows "
            f"left join (select * from {verdicts} where part = {task.number}) as verdicts "
            "on rows.row = verdicts.row order by rows.row",
            path,
        )
        counts = _counts_of(connection, path)
    return Work(files=(path,), content=counts)


def _counts_of(connection: DuckDBPyConnection, path: Path) -> dict[str, Any]:
    """Return the counts of a part from its metadata, as JSON."""
    grouped = connection.execute(
        f"select verdict, reason, count(*) from {parquet(path)} group by verdict, reason"
    ).fetchall()
    rejected = {reason: number for verdict, reason, number in grouped if verdict != "kept"}
    return {
        "rows": sum(number for _, _, number in grouped),
        "kept": sum(number for verdict, _, number in grouped if verdict == "kept"),
        "rejected": dict(sorted(rejected.items())),
    }


def list_rejected(connection: DuckDBPyConnection, table: str) -> list[dict[str, Any]]:
    """Return the rejected rows for people, in order; a hash chooses MAX_LISTED if there are more.

    Args:
        connection: the database.
        table: SQL table of metadata.
    """
    names = ("source", "place", "reason", "detail", "picture_id", "caption")
    listed = connection.execute(
        f"select {', '.join(names)} from ("
        f"  select *, sha256(concat(part, ' ', row)) as rank from {table} "
        f"  where reason is not null order by rank limit {MAX_LISTED}"
        ") order by part, row"
    )
    return [dict(zip(names, row, strict=True)) for row in listed.fetchall()]


def rejected_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rejected rows as JSON Lines."""
    return b"".join(line_of(row) for row in rows)
