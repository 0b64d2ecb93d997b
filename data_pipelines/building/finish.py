"""The end of a building: manifests, lists for people, and the commit of the folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_pipelines.building.accounting import Counts, check_written, total_of
from data_pipelines.building.examples import write_examples
from data_pipelines.building.final_metadata import list_rejected, rejected_lines
from data_pipelines.building.folders import (
    HELD_OUT,
    SHARDS_FOLDER,
    TRAIN,
    metadata_folder,
    split_folder,
)
from data_pipelines.building.job import BuildingJob
from data_pipelines.building.write import ShardTask
from data_pipelines.images import NUM_ENLARGED, image_settings
from data_pipelines.metadata import (
    CURATION_FILE,
    EXAMPLES_FILE,
    METADATA_FILES,
    REJECTED_FILE,
    database,
    parquet_files,
)
from data_pipelines.work_folder import record_commit, remove_work_folder
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.storage.files import commit_folder, sha256_of_json, write_bytes, write_json
from ernie_vilg.storage.shard_manifest import Manifest, shard_of, write_manifest


@dataclass(frozen=True, kw_only=True)
class Written:
    """Results of all tasks."""

    counts: Mapping[str, Counts]
    """Rows by source, as the final metadata have them."""
    shards: Sequence[tuple[ShardTask, Mapping[str, Any]]]
    """Task of every shard, and its record."""
    sources: Mapping[str, str]
    """Hash of what was read of every source."""
    duplicates: Mapping[str, int]
    """Counts of deduplication."""

    def sum_of(self, name: str, split: str | None = None) -> int:
        """Add up a count of the shards, of one split or of all."""
        return sum(content[name] for task, content in self.shards if split in (None, task.split))


def finish(job: BuildingJob, written: Written) -> None:
    """Write what stands beside the shards, and give the folder its name.

    Raises:
        InputError: the shards do not hold what the metadata say.
    """
    check_written(job, total_of(written.counts), written.sum_of("captions"))
    folder = job.folder / SHARDS_FOLDER
    for split in splits(job.config):
        write_manifest(split_folder(job.folder, split), _manifest(job, written, split))
    with database() as connection:
        table = parquet_files(metadata_folder(job.folder), METADATA_FILES)
        rejected = list_rejected(connection, table)
        write_examples(connection, job.folder, folder / EXAMPLES_FILE)
    write_bytes(folder / REJECTED_FILE, rejected_lines(rejected))
    write_json(folder / CURATION_FILE, _curation(job, written, num_listed=len(rejected)))
    record_commit(job.folder)
    commit_folder(folder, job.output_dir)
    remove_work_folder(job.output_dir, "building")


def splits(config: BuildShardsConfig) -> Iterator[str]:
    """Yield the splits that the settings ask for."""
    yield TRAIN
    if config.hold_out_fraction > 0:
        yield HELD_OUT


def _manifest(job: BuildingJob, written: Written, split: str) -> Manifest:
    config = job.config
    shards = [content["shard"] for task, content in written.shards if task.split == split]
    return Manifest(
        kind="image",
        shards=tuple(shard_of(entry, f"the record of a shard in {job.folder}") for entry in shards),
        settings={
            **image_settings(image_size=config.image_size, image_format=config.image_format),
            "captions": config.captions,
            NUM_ENLARGED: written.sum_of("enlarged", split),
        },
        lineage={
            **{f"source.{name}": digest for name, digest in written.sources.items()},
            **job.model_hashes,
            "curation": sha256_of_json(_rules(config)),
        },
    )


def _curation(job: BuildingJob, written: Written, *, num_listed: int) -> dict[str, Any]:
    """Return the counts and rules for people."""
    config = job.config
    samples = dict.fromkeys(splits(config), 0)
    for task, content in written.shards:
        samples[task.split] += content["shard"]["samples"]
    return {
        **total_of(written.counts).as_json(),
        "rejected_rows_listed": num_listed,
        "samples": samples,
        NUM_ENLARGED: written.sum_of("enlarged"),
        "sources": {name: counts.as_json() for name, counts in written.counts.items()},
        "duplicates": dict(written.duplicates),
        "captions": config.captions,
        "hold_out_fraction": config.hold_out_fraction,
        "seed": config.seed,
        "settings": _rules(config),
    }


def _rules(config: BuildShardsConfig) -> dict[str, Any]:
    """Return the settings of curation that decide what is kept; models stand in the lineage."""
    rules = asdict(config.curation)["rules"]
    deduplication = asdict(config.curation.deduplication)
    del deduplication["memory"]
    return {"rules": rules, "deduplication": deduplication}
