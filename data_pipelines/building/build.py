"""Image shards, plain WebDataset tars, built from raw pairs in three stages.

`inspect` reads, judges and prepares the rows of one part of the input per task. `relate` finds rows
that resemble each other, over all parts, and `select` decides which shard every kept row goes to.
`write` copies the prepared pictures into shards, one per task. The number and order of workers
changes no byte, and work that is finished when the program is killed is not done again.

Every row of the input is kept or counted by the reason of its rejection.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, TypeVar

from data_pipelines.building.accounting import (
    Counts,
    check_accounts,
    check_faults,
    check_not_empty,
    counts_of,
    total_of,
)
from data_pipelines.building.final_metadata import MetadataTask, write_metadata
from data_pipelines.building.finish import Written, finish
from data_pipelines.building.folders import PARTS, ROWS_FOLDER, metadata_folder, split_folder
from data_pipelines.building.inspect import InspectTask, inspect_part
from data_pipelines.building.job import BuildingJob, finished_folder, started_job
from data_pipelines.building.records import Finished
from data_pipelines.building.relate import relate_and_select
from data_pipelines.building.report import BuildReport, read_report
from data_pipelines.building.write import ShardTask, write_image_shard
from data_pipelines.duplicates.evaluation_sets import check_evaluation_sets
from data_pipelines.metadata import METADATA_FILES, parquet_files
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.system.progress import progress

Task = TypeVar("Task")

logger = logging.getLogger(__name__)


def build_image_shards(config: BuildShardsConfig) -> BuildReport:
    """Write image shards, their metadata and their manifest; after a kill, the rest of them.

    Raises:
        InputError: a source cannot be read or changes meanwhile, a rule lacks its model,
            `output_dir` must not be written, or too many rows are faulty; then
            `<output_dir>.rejected.jsonl` lists rejected rows.
    """
    folder = finished_folder(config)
    if folder is None:
        check_evaluation_sets(config.curation.deduplication.against)
        with started_job(config) as job:
            _build(job)
            folder = job.output_dir
    report = read_report(folder)
    if report.num_enlarged:
        logger.warning(
            "%d of %d pictures are smaller than image_size=%d and were enlarged, which blurs them: "
            "set a smaller image_size, or reject them by a rule with min_side",
            report.num_enlarged,
            report.num_samples,
            config.image_size,
        )
    return report


def inspect_share(config: BuildShardsConfig) -> Counts:
    """Inspect every `num_parts`-th part of the input, without the shards.

    Several processes, also on several machines that share the folder, may each inspect a share.
    When all are done, `build_image_shards` finds every part inspected and does the rest.

    Returns:
        the rows of this share; none of the kept ones has been compared with others yet.

    Raises:
        InputError: as for `build_image_shards`; or another job has started for `output_dir`.
    """
    assert config.part_index is not None
    check_evaluation_sets(config.curation.deduplication.against)
    with started_job(config) as job:
        read = _inspect_all(job, job.tasks[config.part_index :: config.num_parts])
        return total_of(read.counts)


class _Status:
    """Writes the rows so far for the line of progress."""

    def __init__(self, counts: Mapping[str, Counts]) -> None:
        self._counts = counts
        self._start = time.monotonic()

    def __call__(self) -> str:
        total = total_of(self._counts)
        rate = total.rows / max(time.monotonic() - self._start, 1e-9)
        reasons = [f"{number} {reason}" for reason, number in total.as_json()["rejected"].items()]
        return ", ".join(
            [f"{total.rows} rows", f"{rate:.0f} rows/s", f"{total.kept} kept", *reasons]
        )


class _Read:
    """Counts and hashes of the parts that are inspected so far."""

    def __init__(self) -> None:
        self.counts: dict[str, Counts] = {}
        self.rows_of_part: list[int] = []
        self._digests: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, task: InspectTask, content: Mapping[str, Any]) -> None:
        """Add a part."""
        self.counts.setdefault(task.part.source, Counts()).add(counts_of(content))
        self.rows_of_part.append(content["rows"])
        self._digests[task.part.source].append(content["sha256"])

    @property
    def digests(self) -> dict[str, str]:
        """Hash of every source."""
        return {name: sha256_of_json(digests) for name, digests in self._digests.items()}


def _build(job: BuildingJob) -> None:
    read = _inspect_all(job, job.tasks)
    check_not_empty(job, total_of(read.counts))
    related = relate_and_select(job, read.rows_of_part)
    counts = _write_metadata(job)
    table = parquet_files(metadata_folder(job.folder), METADATA_FILES)
    check_accounts(job, total_of(read.counts), total_of(counts), table)
    check_faults(job, total_of(counts), table, is_all=True)
    finish(
        job,
        Written(
            counts=counts,
            shards=_write_shards(job, related["samples"]),
            sources=read.digests,
            duplicates=related["duplicates"],
        ),
    )


def _inspect_all(job: BuildingJob, tasks: Sequence[InspectTask]) -> _Read:
    """Inspect parts; stop early when too many rows are faulty."""
    read = _Read()
    status = _Status(read.counts)
    table = parquet_files(job.folder / ROWS_FOLDER, PARTS)
    done = _run(job, inspect_part, tasks, what="inspect pairs", unit="parts", status=status)
    for task, finished in zip(tasks, done, strict=True):
        read.add(task, finished.content)
        is_all = len(read.rows_of_part) == len(job.tasks)
        check_faults(job, total_of(read.counts), table, is_all=is_all)
    return read


def _write_metadata(job: BuildingJob) -> dict[str, Counts]:
    """Write the final metadata; return what they count, by source."""
    (metadata_folder(job.folder)).mkdir(exist_ok=True)
    tasks = [MetadataTask(number=task.number, work_folder=job.folder) for task in job.tasks]
    counts = {name: Counts() for name in job.config.all_sources}
    done = _run(job, write_metadata, tasks, what="write metadata", unit="parts")
    for task, finished in zip(job.tasks, done, strict=True):
        counts[task.part.source].add(counts_of(finished.content))
    return counts


def _write_shards(
    job: BuildingJob, samples: Mapping[str, int]
) -> list[tuple[ShardTask, Mapping[str, Any]]]:
    """Write the shards of all splits."""
    tasks = []
    for split, number in sorted(samples.items(), reverse=True):
        split_folder(job.folder, split).mkdir(exist_ok=True)
        tasks += [
            ShardTask(split=split, index=index, work_folder=job.folder, config=job.config)
            for index in range(ceil(number / job.config.samples_per_shard))
        ]
    done = _run(job, write_image_shard, tasks, what="write image shards", unit="shards")
    return [(task, finished.content) for task, finished in zip(tasks, done, strict=True)]


def _run(
    job: BuildingJob,
    function: Callable[[Task], Finished],
    tasks: Sequence[Task],
    *,
    what: str,
    unit: str,
    status: Callable[[], str] | None = None,
) -> Iterator[Finished]:
    """Yield the records of tasks in order; say how many an earlier run has done."""
    num_earlier = 0
    executor = job.executor
    if len(tasks) == 1 and executor.kind == "processes":
        executor = replace(executor, num_workers=1)  # a process would start for nothing
    done = executor.map_in_order(function, tasks)
    for finished in progress(done, total=len(tasks), what=what, unit=unit, status=status):
        num_earlier += finished.is_earlier
        yield finished
    if num_earlier:
        logger.info("%s: %d of %d %s were done already", what, num_earlier, len(tasks), unit)
