"""Examples for the people who judge a data set: pictures kept, rejected by each rule, and clusters.

A hash of the row chooses them. Pictures that inspection kept are in the work folder as samples;
those that it rejected, as thumbnails.
"""

import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection
from PIL import Image

from data_pipelines.building.folders import (
    PARTS,
    ROWS_FOLDER,
    THUMBNAILS_FOLDER,
    metadata_folder,
    part_name,
)
from data_pipelines.building.thumbnails import EXAMPLE_RANK_SQL, jpeg_of
from data_pipelines.building.write import stored_picture
from data_pipelines.metadata import (
    EXAMPLE_COLUMNS,
    METADATA_FILES,
    parquet,
    parquet_files,
    write_rows,
)

_PER_REASON = 24
_CLUSTERS = 24
_PER_CLUSTER = 6

_Place = tuple[int, int]
"""Part and row."""


def write_examples(connection: DuckDBPyConnection, work_folder: Path, path: Path) -> None:
    """Write EXAMPLE_COLUMNS of the chosen rows as a Parquet file."""
    table = parquet_files(metadata_folder(work_folder), METADATA_FILES)
    chosen = [
        *(("kept", place) for place in _kept(connection, table)),
        *(("rejected", place) for place in _rejected(connection, table, work_folder)),
        *(("cluster", place) for place in _clustered(connection, table)),
    ]
    described = _describe(connection, work_folder, {place for _, place in chosen})
    write_rows(
        path, [{"kind": kind, **described[place]} for kind, place in chosen], EXAMPLE_COLUMNS
    )


def _kept(connection: DuckDBPyConnection, table: str) -> list[_Place]:
    found = connection.execute(
        f"select part, row from {table} where verdict = 'kept' "
        f"order by {EXAMPLE_RANK_SQL} limit {_PER_REASON}"
    )
    return [(part, row) for part, row in found.fetchall()]


def _rejected(connection: DuckDBPyConnection, table: str, work_folder: Path) -> list[_Place]:
    """Return rejected rows by reason, those that have thumbnails first."""
    thumbnails = parquet_files(work_folder / THUMBNAILS_FOLDER, PARTS)
    found = connection.execute(f"""
        select reason, unnest(
            min_by([part, row, has_none], concat(has_none, rank), {_PER_REASON}))
        from (
            select part, row, reason, {EXAMPLE_RANK_SQL} as rank,
                (thumbnail is null)::integer as has_none
            from {table} left join (select part, row, true as thumbnail from {thumbnails})
            using (part, row) where verdict = 'rejected'
        ) group by reason order by reason
    """)
    by_reason = defaultdict(list)
    for reason, entry in found.fetchall():
        by_reason[reason].append(entry)
    return [
        (part, row)
        for entries in by_reason.values()
        for part, row, has_none in entries
        if has_none == entries[0][2]
    ]


def _clustered(connection: DuckDBPyConnection, table: str) -> list[_Place]:
    found = connection.execute(f"""
        with chosen as (
            select cluster from {table} where cluster is not null
            group by cluster order by sha256(cluster::varchar) limit {_CLUSTERS}
        )
        select part, row from (
            select cluster, part, row,
                row_number() over (partition by cluster order by verdict, part, row) as nth
            from {table} join chosen using (cluster)
        ) where nth <= {_PER_CLUSTER} order by cluster, nth
    """)
    return [(part, row) for part, row in found.fetchall()]


def _describe(
    connection: DuckDBPyConnection, work_folder: Path, places: Iterable[_Place]
) -> dict[_Place, dict[str, Any]]:
    """Return the columns of rows, with their thumbnails."""
    rows_of_part = defaultdict(list)
    for part, row in places:
        rows_of_part[part].append(row)
    return {
        (entry["part"], entry["row"]): entry
        for part, rows in sorted(rows_of_part.items())
        for entry in _describe_part(connection, work_folder, part, rows)
    }


def _describe_part(
    connection: DuckDBPyConnection, work_folder: Path, part: int, rows: list[int]
) -> list[dict[str, Any]]:
    names = [name for name in EXAMPLE_COLUMNS if name not in ("kind", "jpeg")]
    stored = ("picture_offset", "picture_bytes", "picture_crc32", "jpeg")
    file = f"{part_name(part)}.parquet"
    final = parquet(metadata_folder(work_folder) / f"rows-{part:05d}.parquet")
    found = connection.execute(f"""
        select {", ".join(f"final.{name}" for name in names)}, {", ".join(stored)}
        from (select * from {final} where row in ({", ".join(map(str, rows))})) as final
        join {parquet(work_folder / ROWS_FOLDER / file)} as inspected using (row)
        left join {parquet(work_folder / THUMBNAILS_FOLDER / file)} as thumbnails using (row)
    """)
    described = []
    for values in found.fetchall():
        row = dict(zip([*names, *stored], values, strict=True))
        if row["picture_offset"] is not None:
            with Image.open(io.BytesIO(stored_picture(work_folder, row))) as image:
                row["jpeg"] = jpeg_of(image.convert("RGB"))
        described.append({name: row[name] for name in (*names, "jpeg")})
    return described
