"""Rows that resemble another row or an evaluation set.

The rules are applied in a fixed order, each to what the ones before have left: evaluation sets
first, then equal pictures, near pictures, equal captions, near captions. Which copy is kept depends
on the rows alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from duckdb import DuckDBPyConnection

from data_pipelines.duplicates.evaluation_sets import read_evaluation_sets
from data_pipelines.duplicates.pictures import MIN_QUALITY, judge_pictures
from data_pipelines.duplicates.rows import make_pictures, make_rows, part_of, row_of
from data_pipelines.duplicates.texts import judge_texts, reject_listed_texts
from data_pipelines.metadata import RELATION_COLUMNS, copy_to_parquet, database
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import DeduplicationConfig

_MOST_THREADS = 4
"""Most threads of the database: each needs a share of its memory."""


def find_duplicates(
    rows: str,
    config: DeduplicationConfig,
    *,
    output: Path,
    folder: Path,
    finds_clusters: bool = False,
    threads: int | None = None,
) -> Mapping[str, int]:
    """Write which rows resemble another row or an evaluation set.

    Args:
        rows: pattern of the Parquet files of inspected rows, with `metadata.COLUMNS`.
        config: what counts as a duplicate.
        output: Parquet file to write, with `metadata.RELATION_COLUMNS`, in order of (part, row).
        folder: scratch folder for what does not fit into memory; it exists.
        finds_clusters: whether clusters of near pictures are found where `config.near_pictures` is
            null, too: at the usual distance, and without rejecting any.
        threads: threads of the database, on which the result does not depend; None takes the
            processors of this process, at most 4.

    Returns:
        counts for the manifest: rows and pictures that took part, pictures that are too flat for
        the search for near ones, clusters, and rejected rows by reason.

    Raises:
        InputError: an evaluation set cannot be read, or a package is missing.
    """
    if threads is None:
        threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    with database(memory=config.memory, scratch=folder, threads=threads) as connection:
        # Order is asked for where it matters; keeping it elsewhere takes memory.
        connection.execute("set preserve_insertion_order = false")
        connection.execute("set enable_progress_bar = false")
        make_rows(connection, rows)
        sets = read_evaluation_sets(connection, config.against, min_quality=MIN_QUALITY)
        reject_listed_texts(connection, sets)
        num_rows, num_pictures = make_pictures(connection)
        counts = {"rows": num_rows, "pictures": num_pictures}
        counts.update(
            judge_pictures(connection, config, sets, folder, finds_clusters=finds_clusters)
        )
        counts.update(judge_texts(connection, config, folder))
        _write(connection, output)
        reasons = connection.execute(
            "select reason, count(*) from relations where reason is not null group by all"
        )
        counts.update({reason: int(number) for reason, number in sorted(reasons.fetchall())})
    return counts


def _write(connection: DuckDBPyConnection, output: Path) -> None:
    connection.execute(
        _RELATIONS.format(
            listed=Reason.IN_EVALUATION_SET,
            part=part_of("number"),
            row=row_of("number"),
            of_part=part_of("of_number"),
            of_row=row_of("of_number"),
            cluster_part=part_of("cluster"),
            cluster_row=row_of("cluster"),
        )
    )
    connection.execute("set threads = 1")  # the same bytes on every machine
    columns = ", ".join(f"{name}::{kind} as {name}" for name, kind in RELATION_COLUMNS.items())
    copy_to_parquet(connection, f"select {columns} from relations order by part, row", output)


_RELATIONS = """
create temp table relations as
select {part} as part, {row} as row, reason, {of_part} as of_part, {of_row} as of_row, detail,
    part_offsets.first_row + {cluster_row} as cluster
from (
    select one.number, found.cluster,
        found.reason is null or texts.reason = '{listed}' as is_text,
        case when is_text then texts.reason else found.reason end as reason,
        case when is_text then texts.of_number else found.of_number end as of_number,
        case when is_text then texts.detail else found.detail end as detail
    from candidates as one
    left join picture_verdicts as found using (picture)
    left join text_verdicts as texts on one.number = texts.number
    where found.picture is not null or texts.number is not null
) left join part_offsets on part_offsets.part = {cluster_part}
"""
"""Every row that resembles another one: by its picture, or else by its caption."""
