"""Pictures for people: kept and rejected rows, and clusters of near-duplicates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from data_pipelines.metadata import EXAMPLE_COLUMNS, EXAMPLES_FILE, parquet
from ernie_vilg.errors import InputError

MOST_REASONS = 40
MOST_CLUSTERS = 12
MOST_OF_CLUSTER = 8
MAX_THUMBNAIL_BYTES = 64 << 10
"""Largest thumbnail that the report shows."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row, for people."""

    place: str
    caption: str
    detail: str
    """Wrong value of a rejected row; within a cluster the distance from the row that is kept, or
    "kept"; empty elsewhere."""
    jpeg: bytes | None
    """Thumbnail; None where the picture was never read, or is too large to be shown."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows that the report shows."""

    kept: tuple[Example, ...] = ()
    rejected: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    """Rejected rows by reason."""
    clusters: tuple[tuple[Example, ...], ...] = ()
    """Near-duplicate pictures that were found, cluster by cluster, kept ones first."""


def read_examples(connection: DuckDBPyConnection, folder: Path, most: int) -> Examples:
    """Read the examples that a build left.

    Args:
        connection: any database.
        folder: folder of image shards; without the file there are no examples.
        most: most examples of kept rows, and of rows rejected for one reason.

    Raises:
        InputError: the file cannot be read, or lacks columns.
    """
    path = folder / EXAMPLES_FILE
    if not path.is_file():
        return Examples()
    limits = {"kept": most, "rejected": most, "cluster": MOST_OF_CLUSTER}
    found: dict[tuple[str, str, int], list[Example]] = {}
    try:
        rows = connection.execute(
            _EXAMPLES.format(
                columns=", ".join(EXAMPLE_COLUMNS),
                table=parquet(path),
                most=max(limits.values()),
                most_bytes=MAX_THUMBNAIL_BYTES,
            )
        )
        while row := rows.fetchone():
            kind, reason, cluster, place, caption, detail, jpeg = row
            group = found.setdefault((kind, reason, cluster), [])
            if len(group) < limits.get(kind, 0):
                group.append(Example(place=place, caption=caption, detail=detail, jpeg=jpeg))
    except duckdb.Error as error:
        raise InputError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): copy it again"
        ) from error
    return _grouped({key: tuple(group) for key, group in found.items()})


_EXAMPLES = """
SELECT kind, group_reason, group_cluster, coalesce(place, ''), coalesce(caption, ''),
    CASE WHEN kind = 'cluster' AND reason IS NULL THEN 'kept' ELSE coalesce(detail, '') END,
    CASE WHEN octet_length(jpeg) <= {most_bytes} THEN jpeg END
FROM (
    SELECT *, row_number() OVER (PARTITION BY kind, group_reason, group_cluster
        ORDER BY reason IS NOT NULL, part, row) AS nth
    FROM (
        SELECT {columns},
            CASE kind WHEN 'rejected' THEN coalesce(reason, '') ELSE '' END AS group_reason,
            CASE kind WHEN 'cluster' THEN coalesce(cluster, -1) ELSE -1 END AS group_cluster
        FROM {table}
    )
) WHERE nth <= {most} ORDER BY kind, group_reason, group_cluster, nth
"""


def _grouped(groups: Mapping[tuple[str, str, int], tuple[Example, ...]]) -> Examples:
    """Return the examples by kind; groups are named by kind, reason and cluster."""
    rejected = [(name, rows) for (kind, name, _), rows in groups.items() if kind == "rejected"]
    clusters = [rows for (kind, _, _), rows in groups.items() if kind == "cluster"]
    return Examples(
        kept=groups.get(("kept", "", -1), ()),
        rejected=dict(rejected[:MOST_REASONS]),
        clusters=tuple(clusters[:MOST_CLUSTERS]),
    )
