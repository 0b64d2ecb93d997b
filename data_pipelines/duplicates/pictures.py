"""Pictures that repeat or resemble each other, or resemble one of an evaluation set.

All of it is about whole pictures: a rejected picture takes all its rows with it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from duckdb import DuckDBPyConnection

from data_pipelines.duplicates.components import Components
from data_pipelines.duplicates.evaluation_sets import EvaluationSets
from data_pipelines.duplicates.near_hashes import connect_near_hashes
from data_pipelines.duplicates.nearest_hashes import nearest_of_few
from data_pipelines.duplicates.rows import HASH_COLUMNS, count_of, place_of
from data_pipelines.duplicates.stored_hashes import first_numbers, register_hashes, store_hashes
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import DeduplicationConfig

MIN_QUALITY = 50
"""Least PDQ quality of a picture that is compared with near ones. The hash of a flatter picture
says little about it; it takes part among equal pictures only."""
USUAL_DISTANCE = 31
"""Distance of near pictures where `near_pictures` is null: to evaluation sets, and of those
that are held out together."""

_SAME_PIXELS = "same pixels"
_DISTANCE = " + ".join(f"bit_count(xor(one.pdq_{w}, kept.pdq_{w}))" for w in range(4))


def judge_pictures(
    connection: DuckDBPyConnection,
    config: DeduplicationConfig,
    sets: EvaluationSets,
    folder: Path,
    *,
    finds_clusters: bool,
) -> Mapping[str, int]:
    """Make the table `picture_verdicts`: picture, number, reason, of_number, detail, cluster.

    Args:
        connection: database with the view `pictures` and the tables of the evaluation sets.
        config: what counts as a duplicate.
        sets: the evaluation sets.
        folder: scratch folder.
        finds_clusters: whether clusters of near pictures are found although none is rejected.

    Returns:
        counts by name.
    """
    connection.execute("""
        create temp table picture_verdicts (
            picture uhugeint, number bigint, reason varchar, of_number bigint, detail varchar,
            cluster bigint);
        create temp view pictures_left as
        select * from pictures where not exists (
            select 1 from picture_verdicts as found
            where found.picture = pictures.picture and found.reason is not null);
    """)
    counts: dict[str, int] = {}
    if config.against:
        _find_in_sets(connection, config, sets, folder)
    if config.exact_pictures:
        _find_equal(connection)
    if config.near_pictures is not None or finds_clusters:
        counts = _find_near(connection, config, folder)
    return counts


def _distance_of(config: DeduplicationConfig) -> int:
    return USUAL_DISTANCE if config.near_pictures is None else config.near_pictures


def _find_in_sets(
    connection: DuckDBPyConnection, config: DeduplicationConfig, sets: EvaluationSets, folder: Path
) -> None:
    names = {"set_number": np.arange(len(sets.names)), "name": np.array(sets.names, dtype=object)}
    connection.register("set_names", names)
    _find_near_sets(connection, sets, _distance_of(config), folder)
    connection.execute(f"""
        create temp table in_sets as
            select picture, number, 0 as rank, 'name' as what, set_number
            from pictures join evaluation_id on picture_id = entry
        union all
            select picture, number, 1, 'pixels', set_number
            from pictures join evaluation_sha256 on pixels = unhex(entry)
        union all
            select picture, number, 2 + distance, concat('distance ', distance), set_number
            from pictures join near_sets using ({HASH_COLUMNS})
            where pdq_quality >= {MIN_QUALITY};
        insert into picture_verdicts by name
        select picture, number, '{Reason.IN_EVALUATION_SET}' as reason,
            concat(first.what, ', ', name) as detail
        from (
            select picture, number, arg_min({{'what': what, 'set_number': set_number}},
                (rank, set_number)) as first
            from in_sets group by picture, number
        ) join set_names on first.set_number = set_names.set_number;
    """)
    connection.unregister("set_names")


def _find_near_sets(
    connection: DuckDBPyConnection, sets: EvaluationSets, distance: int, folder: Path
) -> None:
    """Make the table `near_sets`: hashes of pictures near to one of a set, distance, set_number."""
    columns = ", ".join(f"pdq_{word} ubigint" for word in range(4))
    connection.execute(
        f"create temp table near_sets ({columns}, distance bigint, set_number bigint)"
    )
    if not len(sets.hashes) or not _make_hashes(connection):
        return
    hashes, _ = store_hashes(connection, "hashes", folder)
    positions, others, distances = nearest_of_few(hashes, sets.hashes, distance)
    register_hashes(
        connection,
        "given",
        np.asarray(hashes[positions]),
        distance=distances,
        set_number=sets.sets_of_hashes[others],
    )
    connection.execute("insert into near_sets by name select * from given")
    connection.unregister("given")


def _make_hashes(connection: DuckDBPyConnection) -> int:
    """Make the table `hashes`: distinct hashes, first number, and copies; return its size."""
    connection.execute(f"""
        create or replace temp table hashes as
        select {HASH_COLUMNS}, min(number) as number, count(*) as copies
        from pictures_left where pdq_quality >= {MIN_QUALITY} group by {HASH_COLUMNS}
    """)
    return count_of(connection, "hashes")


def _find_equal(connection: DuckDBPyConnection) -> None:
    connection.execute(f"""
        create temp table repeated as
        select pixels, min(number) as number from pictures_left
        group by pixels having count(*) > 1;
        insert into picture_verdicts by name
        select picture, pictures_left.number, '{Reason.DUPLICATE_PICTURE}' as reason,
            repeated.number as of_number, '{_SAME_PIXELS}' as detail
        from pictures_left join repeated using (pixels)
        where pictures_left.number <> repeated.number;
        drop table repeated;
    """)


def _find_near(
    connection: DuckDBPyConnection, config: DeduplicationConfig, folder: Path
) -> dict[str, int]:
    """Find clusters of near pictures; reject all but one of each unless `near_pictures` is null."""
    flat = count_of(connection, f"pictures_left where pdq_quality < {MIN_QUALITY}")
    size = _make_hashes(connection)
    if size == 0:
        return {"pictures_too_flat": flat, "near_picture_clusters": 0}
    hashes, numbers = store_hashes(connection, "hashes", folder)
    components = Components(size, folder / "components.bin")
    connect_near_hashes(hashes, _distance_of(config), components, folder)
    members, component_of = components.groups()
    first = first_numbers(numbers[members], component_of)
    register_hashes(connection, "given", np.asarray(hashes[members]), cluster=first)
    order = "(-area, number)" if config.keep == "largest" else "number"
    connection.execute(
        _NEAR.format(
            hash_columns=HASH_COLUMNS,
            order=order,
            distance=_DISTANCE,
            near=Reason.NEAR_DUPLICATE_PICTURE,
            is_rejected="one.number <> kept.number"
            if config.near_pictures is not None
            else "false",
            min_quality=MIN_QUALITY,
        )
    )
    connection.unregister("given")
    connection.execute(
        _FOLLOWED.format(
            equal=Reason.DUPLICATE_PICTURE,
            same=_SAME_PIXELS,
            place=place_of("picture_verdicts.of_number"),
        )
    )
    clusters = count_of(connection, "kept_of_clusters")
    return {"pictures_too_flat": flat, "near_picture_clusters": clusters}


_NEAR = """
create temp table clustered as
select picture, pictures_left.number, area, {hash_columns},
    coalesce(cluster, hashes.number) as cluster
from pictures_left
join (
    select {hash_columns}, cluster, hashes.number from hashes left join given using ({hash_columns})
    where copies > 1 or cluster is not null
) as hashes using ({hash_columns})
where pdq_quality >= {min_quality};

create temp table kept_of_clusters as
select cluster, unnest(arg_min(
    {{'number': number, 'pdq_0': pdq_0, 'pdq_1': pdq_1, 'pdq_2': pdq_2, 'pdq_3': pdq_3}}, {order}))
from clustered group by cluster;

insert into picture_verdicts by name
select picture, one.number, cluster,
    case when {is_rejected} then '{near}' end as reason,
    case when {is_rejected} then kept.number end as of_number,
    case when {is_rejected} then concat('distance ', {distance}) end as detail
from clustered as one join kept_of_clusters as kept using (cluster);
"""
"""Clusters of near pictures. A distance above the threshold goes over other pictures."""

_FOLLOWED = """
update picture_verdicts
set of_number = coalesce(kept.of_number, picture_verdicts.of_number), cluster = kept.cluster,
    detail = case when kept.of_number is null then '{same}'
        else concat('{same} as ', {place}) end
from picture_verdicts as kept
where picture_verdicts.reason = '{equal}' and picture_verdicts.of_number = kept.number;
"""
"""A picture equal to one that gives way to a near one gives way to that, too."""
