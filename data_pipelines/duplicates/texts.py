"""Captions that repeat or resemble each other, or are in an evaluation set.

All of it is about rows: another caption of the same picture stays.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from duckdb import DuckDBPyConnection

from data_pipelines.duplicates.evaluation_sets import EvaluationSets
from data_pipelines.duplicates.near_texts import find_near_texts
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import DeduplicationConfig


def reject_listed_texts(connection: DuckDBPyConnection, sets: EvaluationSets) -> None:
    """Make the table `text_verdicts` with the rows whose caption is in an evaluation set.

    Its columns are number, reason, of_number and detail. The view `present` gets the other rows of
    `candidates`.
    """
    names = {"set_number": np.arange(len(sets.names)), "name": np.array(sets.names, dtype=object)}
    connection.register("set_names", names)
    connection.execute(f"""
        create temp table text_verdicts as
        select number, '{Reason.IN_EVALUATION_SET}' as reason, null::bigint as of_number,
            concat('caption, ', name) as detail
        from candidates
        join (select unhex(entry) as text, min(set_number) as set_number from evaluation_text
            group by entry) using (text)
        join set_names using (set_number)
    """)
    connection.unregister("set_names")
    connection.execute("""
        create temp table listed as select number from text_verdicts;
        create temp view present as
        select * from candidates where not exists (
            select 1 from listed where listed.number = candidates.number);
    """)


def judge_texts(
    connection: DuckDBPyConnection, config: DeduplicationConfig, folder: Path
) -> Mapping[str, int]:
    """Add the rows that are rejected for their caption to the table `text_verdicts`.

    Args:
        connection: database with the table `picture_verdicts`.
        config: what counts as a duplicate.
        folder: scratch folder.

    Returns:
        counts by name.
    """
    connection.execute("""
        create temp view texts_left as
        select * from candidates where not exists (
            select 1 from picture_verdicts as found
            where found.picture = candidates.picture and found.reason is not null
        ) and not exists (
            select 1 from text_verdicts where text_verdicts.number = candidates.number)
    """)
    if config.max_pairs_per_text is not None:
        _limit_equal(connection, config.max_pairs_per_text)
    if config.near_texts is not None:
        return _reject_near(connection, config.near_texts, folder)
    return {}


def _limit_equal(connection: DuckDBPyConnection, most: int) -> None:
    """Reject rows whose caption at least `most` earlier pictures have."""
    connection.execute(f"""
        insert into text_verdicts by name
        with often as (select text from texts_left group by text having count(*) > {most}),
        rows as (
            select number, text, min(number) over (partition by text, picture) as of_picture,
                min(number) over (partition by text) as first
            from texts_left where text in (select text from often)
        ), ranked as (
            select number, first,
                dense_rank() over (partition by text order by of_picture) as rank
            from rows
        )
        select number, '{Reason.DUPLICATE_TEXT}' as reason, first as of_number,
            concat('number ', rank, ' with this caption') as detail
        from ranked where rank > {most}
    """)


def _reject_near(
    connection: DuckDBPyConnection, similarity: float, folder: Path
) -> Mapping[str, int]:
    """Reject rows with near captions, except the first caption of every cluster.

    Rows of the same picture as the first one stay.
    """
    connection.execute("""
        create temp table distinct_texts as
        select text, min(number) as number, arg_min(picture, number) as picture
        from texts_left group by text
    """)
    found = find_near_texts(connection, similarity, folder)
    given = {"number": found.numbers, "first": found.firsts, "shared": found.similarities}
    connection.register("given", given)
    connection.execute(f"""
        insert into text_verdicts by name
        select rows.number, '{Reason.NEAR_DUPLICATE_TEXT}' as reason, first as of_number,
            printf('similarity %.2f', shared) as detail
        from texts_left as rows
        join distinct_texts as own using (text)
        join given on own.number = given.number
        join distinct_texts as kept on kept.number = given.first
        where rows.picture <> kept.picture
    """)
    connection.unregister("given")
    return {"distinct_texts": found.num_texts, "near_text_clusters": found.num_clusters}
