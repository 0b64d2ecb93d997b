"""Encoding of image shards to token shards, which hold codes and text ids of frozen tokenizers.

Training reads only token shards, so each picture is encoded once and not once per epoch. One image
shard gives one token shard per view. The manifest's lineage identifies both tokenizers, the crop
settings and the image shards by their SHA-256, and training refuses token shards of another
lineage. End-to-end training also needs the pictures: with `keep_pixels` each token sample holds
the file of its picture.

The work folder is `.encoding-<name>` beside the output folder. Each finished shard has a record
there; a restart after a kill keeps the shards that match their records. Image shards that were held
out, in `held_out/` within the folder, are encoded with the others into a folder of the same name.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.encoding.job import EncodingSet, sets_to_encode
from data_pipelines.encoding.task import (
    CODES_FILE,
    EncodedShard,
    EncodingTask,
    TokenCounts,
    new_counts,
    read_record,
)
from data_pipelines.encoding.token_shard import encode_shard
from data_pipelines.encoding.workers import Workers, start_worker, workers_of
from data_pipelines.outputs import check_output_folder
from data_pipelines.work_folder import (
    clear_finished,
    record_commit,
    remove_work_folder,
    work_folder,
    work_path,
)
from ernie_vilg.config.shards import EncodeShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import commit_folder, sha256_of_file, write_json
from ernie_vilg.storage.shard_manifest import (
    FILE_NAME,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
)
from ernie_vilg.system.progress import progress

BFLOAT16_CODES = "bfloat16_codes"
"""Setting of token shards in bfloat16: codes of the first batch of every shard that were compared
with those of float32, and those that differ."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _EncodingJob:
    """All work for one output folder."""

    output_dir: Path
    """Output folder, with links resolved."""
    folder: Path
    """Work folder beside it, with finished shards and their records."""
    sets: tuple[EncodingSet, ...]
    """The image shards, and those held out if there are any."""
    workers: Workers

    @property
    def tasks(self) -> list[EncodingTask]:
        """All tasks, in the order of the sets and their shards."""
        return [task for part in self.sets for task in part.tasks]


def encode_image_shards(config: EncodeShardsConfig) -> Manifest:
    """Write token shards and their manifest; and those of the held-out image shards, if any.

    Returns:
        the manifest of the token shards that are not held out.

    Raises:
        InputError: the image shards or a tokenizer cannot be read, do not fit together,
            `output_dir` must not be written, the device does not exist, or bfloat16 changes too
            many codes.
    """
    output_dir = Path(os.path.realpath(config.output_dir))
    if not config.overwrite and clear_finished(
        output_dir, lambda: _identity_of(_sets(config, output_dir)[1]), kind="encoding"
    ):
        return read_manifest(output_dir, "token")
    with _started_job(config) as job:
        _encode_missing(job.tasks, job.workers)
        manifests = [_write_manifest(job.folder / "shards", part) for part in job.sets]
        record_commit(job.folder)
        commit_folder(job.folder / "shards", job.output_dir)
        remove_work_folder(job.output_dir, "encoding")
    return manifests[0]


def encode_part(config: EncodeShardsConfig) -> int:
    """Encode every `num_parts`-th token shard, without the rest and the manifest.

    Several processes, also on several machines that share the folder, may each encode a part. When
    all are done, `encode_image_shards` finds every shard encoded and writes the manifest.

    Returns:
        the number of shards of this part.

    Raises:
        InputError: as for `encode_image_shards`; or another job has started for `output_dir`.
    """
    assert config.part_index is not None
    with _started_job(config) as job:
        part = job.tasks[config.part_index :: config.num_parts]
        _encode_missing(part, job.workers)
    return len(part)


@contextmanager
def _started_job(config: EncodeShardsConfig) -> Iterator[_EncodingJob]:
    inputs = ("shards", "text_tokenizer_dir", "image_tokenizer_dir", "codes_from")
    output_dir = check_output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=FILE_NAME,
        inputs={
            name: location for name in inputs if (location := getattr(config, name)) is not None
        },
    )
    workers, sets = _sets(config, output_dir)
    is_shared = config.part_index is not None
    with work_folder(
        output_dir, _identity_of(sets), kind="encoding", is_shared=is_shared
    ) as folder:
        placed = tuple(part.in_folder(folder) for part in sets)
        for part in placed:
            (folder / "shards" / part.name).mkdir(exist_ok=True)
        yield _EncodingJob(output_dir=output_dir, folder=folder, sets=placed, workers=workers)


def _sets(config: EncodeShardsConfig, output_dir: Path) -> tuple[Workers, tuple[EncodingSet, ...]]:
    # The device is checked before anything is read.
    workers = workers_of(config, work_path(output_dir, "encoding"))
    return workers, sets_to_encode(config, workers)


def _identity_of(sets: tuple[EncodingSet, ...]) -> dict[str, Any]:
    """Return everything that the bytes of the token shards depend on, by name."""
    return {name: value for part in sets for name, value in part.identity.items()}


def _encode_missing(tasks: list[EncodingTask], workers: Workers) -> None:
    """Encode every shard that has no sound record."""
    waiting = [task for task in tasks if _finished(task) is None]
    if len(waiting) < len(tasks):
        logger.info("%d of %d shards are encoded already", len(tasks) - len(waiting), len(tasks))
    done = workers.executor.map_in_order(
        encode_shard,
        waiting,
        initializer=start_worker,
        initializer_arguments=workers.start_arguments(),
    )
    for _ in progress(done, total=len(waiting), what="encode shards", unit="shards"):
        pass


def _finished(task: EncodingTask) -> EncodedShard | None:
    """Return the record of a token shard; None, and a warning, if it does not match."""
    try:
        return read_record(task)
    except InputError as error:
        logger.warning("encoding %s again: %s", task.shard.file, error)
        return None


def _write_manifest(folder: Path, part: EncodingSet) -> Manifest:
    """Write the manifest of finished token shards, and the number of uses of every code."""
    shards: list[Shard] = []
    counts = new_counts(part.tasks[0].settings.codebook_size)
    for task in part.tasks:
        record = _finished(task)
        if record is None:
            raise InputError(
                f"{task.output} changed after it was written: look for another program that writes "
                "there, or a failing disk, and start again"
            )
        shards.append(record.shard)
        counts.merge(record.counts)
    codes_file = folder / part.name / CODES_FILE
    write_json(codes_file, {"counts": counts.code_counts.tolist()})
    manifest = Manifest(
        kind="token",
        shards=tuple(shards),
        settings={
            **part.settings,
            **_comparison(counts, part),
            **counts.text_settings(),
            "codes": {"file": CODES_FILE, "sha256": sha256_of_file(codes_file)},
        },
        lineage=part.lineage,
    )
    write_manifest(folder / part.name, manifest)
    return manifest


def _comparison(counts: TokenCounts, part: EncodingSet) -> dict[str, Any]:
    """Return the manifest's setting about the codes that bfloat16 changes."""
    if part.settings["precision"] == "fp32":
        return {}
    if part.old is not None:
        return {BFLOAT16_CODES: part.old.settings.get(BFLOAT16_CODES)}
    logger.info(
        "bf16 changed %d of %d compared codes (%.2f%%)",
        counts.differing_codes,
        counts.compared_codes,
        100 * counts.differing_codes / counts.compared_codes,
    )
    return {
        BFLOAT16_CODES: {"compared": counts.compared_codes, "differing": counts.differing_codes}
    }
