"""The second stage: what becomes of every row that its own inspection kept.

DuckDB works on the metadata of all parts, out of core. It rejects rows that repeat or resemble
others, joins the rows of one picture into a sample, holds samples out, and numbers the rest: the
shard of a sample follows from the order of the input alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from duckdb import DuckDBPyConnection

from data_pipelines.building.folders import HELD_OUT, PARTS, ROWS_FOLDER, TRAIN
from data_pipelines.duplicates.rows import PICTURE_KEY
from data_pipelines.metadata import copy_to_parquet, parquet, parquet_files
from data_pipelines.rejections import Reason
from ernie_vilg.config.shards import BuildShardsConfig

VERDICTS_FILE = "verdicts.parquet"
"""One row for every row that inspection kept, in order: reason, of_part, of_row, split, shard."""
SAMPLES_FILE = "samples.parquet"
"""One row for every kept row, in the order of the shards."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Inputs of the second stage."""

    work_folder: Path
    relations: Path | None
    """Parquet file of what deduplication found; None where nothing was looked for."""
    rows_of_part: Sequence[int]
    """Number of rows of every part in order."""
    config: BuildShardsConfig


def select(connection: DuckDBPyConnection, selection: Selection) -> dict[str, int]:
    """Write VERDICTS_FILE and SAMPLES_FILE in the work folder.

    Args:
        connection: database with room for temporary tables.
        selection: the rows and the rules.

    Returns:
        the number of samples by split.
    """
    _number_parts(connection, selection.rows_of_part)
    _judge(connection, selection)
    _choose_splits(connection, selection.config)
    _place(connection, selection.config.samples_per_shard)
    copy_to_parquet(
        connection, "select * from placed order by part, row", selection.work_folder / VERDICTS_FILE
    )
    copy_to_parquet(
        connection,
        "select split, shard, position, number, part, row from placed where reason is null "
        "order by split, position, part, row",
        selection.work_folder / SAMPLES_FILE,
    )
    counts = connection.execute("select split, sum(samples) from offsets group by split")
    return {split: int(count) for split, count in counts.fetchall()}


def _number_parts(connection: DuckDBPyConnection, rows_of_part: Sequence[int]) -> None:
    """Make the table `parts`: the number of rows before each part."""
    counts = np.array(rows_of_part, np.int64)
    given = {"part": np.arange(len(counts)), "first_row": np.cumsum(counts) - counts}
    connection.register("given_parts", given)
    connection.execute("create temp table parts as select * from given_parts")


def _judge(connection: DuckDBPyConnection, selection: Selection) -> None:
    """Make the table `judged`: every row that inspection kept, and why it is rejected after all.

    A row that repeats another one gives way to it whatever it resembles. Only rows that are left
    are joined into samples, named by the first row of each.
    """
    connection.execute(
        _RELATED.format(
            rows=parquet_files(selection.work_folder / ROWS_FOLDER, PARTS),
            relations=_relations(selection.relations),
            picture_key=PICTURE_KEY,
            repeated=Reason.DUPLICATE_KEY,
        )
    )
    group = {
        "all": "picture, reason is null",
        "first": "picture, reason is null",
        "separate": "part, row",
    }[selection.config.captions]
    is_further = "false"
    if selection.config.captions == "first":
        is_further = "reason is null and (part, row) <> (first_part, first_row)"
    connection.execute(
        _JUDGED.format(group=group, is_further=is_further, further=Reason.FURTHER_CAPTION)
    )


def _relations(path: Path | None) -> str:
    if path is not None:
        return parquet(path)
    return (
        "(select 0 as part, 0 as row, null as reason, null as of_part, null as of_row, "
        "null as detail, null as cluster where false)"
    )


_RELATED = """
create temp table related as
select part, row, picture, pixels_sha256, cluster,
    case when nth > 1 then '{repeated}' else found_reason end as reason,
    case when nth > 1 then concat('same picture and caption as row ', same_row, ' of part ',
        same_part) else found_detail end as detail,
    case when nth > 1 then same_part else found_part end as of_part,
    case when nth > 1 then same_row else found_row end as of_row
from (
    select inspected.*,
        found.reason as found_reason, found.detail as found_detail,
        found.of_part as found_part, found.of_row as found_row, found.cluster as cluster,
        row_number() over same as nth,
        first_value(inspected.part) over same as same_part,
        first_value(inspected.row) over same as same_row
    from (
        select part, row, pixels_sha256, md5_number(caption) as text,
            {picture_key} as picture
        from {rows} where reason is null
    ) as inspected
    left join {relations} as found
        on inspected.part = found.part and inspected.row = found.row
    window same as (partition by picture, text order by inspected.part, inspected.row)
)
"""

_JUDGED = """
create temp table judged as
select * replace (
    case when {is_further} then '{further}' else reason end as reason,
    case when {is_further} then 'an earlier row has the same picture' else detail end as detail,
    case when {is_further} then first_part else of_part end as of_part,
    case when {is_further} then first_row else of_row end as of_row)
from (
    select *, first_value(part) over sample as first_part, first_value(row) over sample as first_row
    from related
    window sample as (partition by {group} order by part, row)
)
"""


def _choose_splits(connection: DuckDBPyConnection, config: BuildShardsConfig) -> None:
    """Make the table `samples`: the first row of every sample and its split.

    The hash is that of the smallest pixel hash among near-duplicates, so that copies stay together
    and other pictures of the input change nothing.
    """
    # Hexadecimal digits of equal number are ordered as the numbers that they are.
    limit = f"{int(config.hold_out_fraction * 2**256):064x}"
    digest = f"sha256(concat({config.seed}, ' ', coalesce(names.name, judged.pixels_sha256)))"
    split = f"case when {digest} < '{limit}' then '{HELD_OUT}' else '{TRAIN}' end"
    if config.hold_out_fraction == 0:
        split = f"'{TRAIN}'"
    connection.execute("""
        create temp table names as
        with clusters as (
            select pixels_sha256, min(cluster) as cluster from judged
            where cluster is not null group by pixels_sha256
        ), smallest as (
            select cluster, min(pixels_sha256) as name from clusters group by cluster
        )
        select pixels_sha256, name from clusters join smallest using (cluster)
    """)
    connection.execute(f"""
        create temp table samples as
        select part, row, {split} as split
        from judged left join names on judged.pixels_sha256 = names.pixels_sha256
        where reason is null and part = first_part and row = first_row
    """)


def _place(connection: DuckDBPyConnection, samples_per_shard: int) -> None:
    """Make the table `placed`: every judged row, with the sample and the shard that it is in.

    Positions are counted within parts and added up, so that nothing sorts all rows at once.
    """
    connection.execute("""
        create temp table offsets as
        select split, part, count(*) as samples,
            coalesce(sum(count(*)) over (
                partition by split order by part rows between unbounded preceding and 1 preceding
            ), 0)::bigint as first_position
        from samples group by split, part
    """)
    connection.execute(f"""
        create temp table placed as
        with positions as (
            select part, row, split, first_position - 1
                + row_number() over (partition by split, part order by row) as position
            from samples join offsets using (split, part)
        )
        select judged.part, judged.row, judged.reason, judged.detail, judged.of_part, judged.of_row,
            judged.cluster, positions.split, positions.position,
            (positions.position // {samples_per_shard})::integer as shard,
            parts.first_row + positions.row as number
        from judged
        left join positions on judged.reason is null
            and judged.first_part = positions.part and judged.first_row = positions.row
        left join parts on positions.part = parts.part
    """)
