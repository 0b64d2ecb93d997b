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
MAX_PICTURE_BYTES = 64 << 10
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
    found: dict[tuple[str, str, int], list[Example]] = {}
    limits = {"kept": most, "rejected": most, "cluster": MOST_OF_CLUSTER}
    columns = ", ".join(EXAMPLE_COLUMNS)
    ranked = (
        f"SELECT {columns}, row_number() OVER (PARTITION BY kind, CASE kind WHEN 'rejected' THEN "
        "reason END, CASE kind WHEN 'cluster' THEN cluster END "
        "ORDER BY reason IS NOT NULL, part, row) AS place_of "
        f"FROM {parquet(path)}"
    )
    try:
        rows = connection.execute(
            "SELECT kind, coalesce(reason, ''), coalesce(cluster, -1), coalesce(place, ''), "
            "coalesce(caption, ''), CASE WHEN kind = 'cluster' AND reason IS NULL THEN 'kept' ELSE "
            "coalesce(detail, '') END, CASE WHEN octet_length(jpeg) <= "
            f"{MAX_PICTURE_BYTES} THEN jpeg END FROM ({ranked}) WHERE place_of <= "
            f"{max(limits.values())} ORDER BY kind, CASE kind WHEN 'rejected' THEN "
            "reason END, cluster, place_of"
        )
        while row := rows.fetchone():
            kind, reason, cluster, place, caption, detail, jpeg = row
            key = kind, reason if kind == "rejected" else "", cluster if kind == "cluster" else -1
            group = found.setdefault(key, [])
            if len(group) < limits.get(kind, 0):
                group.append(Example(place=place, caption=caption, detail=detail, jpeg=jpeg))
    except duckdb.Error as error:
        raise InputError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): copy it again"
        ) from error
    groups = {key: tuple(group) for key, group in found.items()}
    return Examples(
        kept=groups.get(("kept", "", -1), ()),
        rejected=dict(
            [(reason, group) for (kind, reason, _), group in groups.items() if kind == "rejected"][
                :MOST_REASONS
            ]
        ),
        clusters=tuple(
            [group for (kind, _, _), group in groups.items() if kind == "cluster"][:MOST_CLUSTERS]
        ),
    )
