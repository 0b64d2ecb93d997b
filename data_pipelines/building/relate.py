"""Once all parts are inspected: deduplication over all of them, then the selection."""

import logging
from pathlib import Path
from typing import Any

from data_pipelines.building.folders import PARTS, ROWS_FOLDER
from data_pipelines.building.job import BuildingJob
from data_pipelines.building.records import Work, once
from data_pipelines.building.select import SAMPLES_FILE, VERDICTS_FILE, Selection, select
from data_pipelines.duplicates.find import find_duplicates
from data_pipelines.metadata import database, pattern_in
from ernie_vilg.config.curation import DeduplicationConfig
from ernie_vilg.storage.files import remove

_RELATIONS_FILE = "relations.parquet"
_SCRATCH_FOLDER = "scratch"

logger = logging.getLogger(__name__)


def relate_and_select(job: BuildingJob, rows_of_part: list[int]) -> dict[str, Any]:
    """Decide about every row that inspection kept, unless that is done.

    Args:
        job: the job, whose parts are all inspected.
        rows_of_part: number of rows of every part in order.

    Returns:
        `samples`, their number by split; and `duplicates`, the counts of deduplication.

    Raises:
        InputError: as for `find_duplicates`.
    """
    return once(job.folder, "select", lambda: _work(job, rows_of_part)).content


def _work(job: BuildingJob, rows_of_part: list[int]) -> Work:
    config, relations = job.config, job.folder / _RELATIONS_FILE
    scratch = job.folder / _SCRATCH_FOLDER
    remove(scratch)  # left by a kill
    scratch.mkdir()
    duplicates: dict[str, int] = {}
    is_held_out = config.hold_out_fraction > 0  # clusters of near pictures stay together
    is_related = is_held_out or finds_something(config.curation.deduplication)
    if is_related:
        logger.info("look for duplicates")
        duplicates = dict(
            find_duplicates(
                pattern_in(job.folder / ROWS_FOLDER, PARTS),
                config.curation.deduplication,
                output=relations,
                folder=scratch,
                finds_clusters=is_held_out,
            )
        )
    selection = Selection(
        work_folder=job.folder,
        relations=relations if is_related else None,
        rows_of_part=rows_of_part,
        config=config,
    )
    memory = config.curation.deduplication.memory
    threads = max(1, config.num_workers)
    with database(memory=memory, scratch=scratch, threads=threads) as connection:
        samples = select(connection, selection)
    remove(scratch)
    files: list[Path] = [job.folder / VERDICTS_FILE, job.folder / SAMPLES_FILE]
    return Work(
        files=[*files, *([relations] if is_related else [])],
        content={"samples": samples, "duplicates": duplicates},
    )


def finds_something(config: DeduplicationConfig) -> bool:
    """Return whether any rule of deduplication is on."""
    return (
        config.exact_pictures
        or bool(config.against)
        or any(
            rule is not None
            for rule in (config.near_pictures, config.max_pairs_per_text, config.near_texts)
        )
    )
