"""Encoding of image shards to token shards, which hold codes and text ids of frozen tokenizers.

Training reads only token shards, so each picture is encoded once and not once per epoch. One image
shard gives one token shard. The manifest's lineage identifies both tokenizers, the crop settings
and the image shards by their SHA-256, and training refuses token shards of another lineage.
End-to-end training also needs the pictures: with `keep_pixels` each token sample holds the file of
its picture, byte for byte.

The work folder is `.encoding-<name>` beside the output folder. Each finished shard has a record
there; a restart after a kill keeps the shards that match their records.
"""

import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.captions import caption_of
from data_pipelines.images import NUM_ENLARGED
from data_pipelines.outputs import check_output_folder
from data_pipelines.shard_writer import shard_name, write_shard
from data_pipelines.work_folder import remove_work_folder, work_folder
from ernie_vilg.config.shards import EncodeShardsConfig
from ernie_vilg.data.batches.pictures import PICTURE_MEMBERS, picture_of
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import KEY, Sample, read_shard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import commit_folder, sha256_of_json, write_json
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.locks import locked
from ernie_vilg.storage.shard_manifest import (
    CAPTION_LENGTHS,
    FILE_NAME,
    Manifest,
    Shard,
    caption_lengths_of,
    read_manifest,
    shard_of,
    verify_shard,
    write_manifest,
)
from ernie_vilg.system.devices import choose_device
from ernie_vilg.system.progress import progress
from ernie_vilg.system.worker_pool import map_in_order
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.pixels import from_pictures
from ernie_vilg.vqgan.weights import load_image_tokenizer

SHARD_PREFIX = "tokens"
CODES = "codes.npy"
TEXT = "text.npy"
MEMBERS = (CODES, "json", TEXT)
"""Members of every token sample; `keep_pixels` adds one of PICTURE_MEMBERS."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _EncodingTask:
    """One image shard to encode."""

    source: Path
    """Folder of image shards."""
    shard: Shard
    """Image shard to encode."""
    output: Path
    """File of the token shard."""
    record: Path
    """File that is written when the token shard is complete."""
    lock: Path
    """Empty file that is locked by the process that writes the token shard."""
    text_tokenizer: Path
    image_tokenizer: Path
    lineage: Mapping[str, str]
    batch_size: int
    device: str
    keep_pixels: bool


@dataclass(frozen=True, kw_only=True)
class _EncodedShard:
    """Record of a finished token shard."""

    shard: Shard
    caption_lengths: Mapping[int, int]
    """Number of captions by their number of ids, end of text included."""


@dataclass(frozen=True, kw_only=True)
class _EncodingJob:
    """All work for one output folder."""

    output_dir: Path
    """Output folder, with links resolved."""
    folder: Path
    """Work folder beside it, with finished shards and their records."""
    tasks: list[_EncodingTask]
    """Tasks in the order of the image shards."""
    settings: Mapping[str, Any]
    """Settings of the manifest that depend on the tokenizers."""
    lineage: Mapping[str, str]
    """Lineage of the manifest."""


def encode_image_shards(config: EncodeShardsConfig) -> Manifest:
    """Write token shards and their manifest.

    Raises:
        InputError: the image shards or a tokenizer cannot be read, do not fit together,
            `output_dir` must not be written, or the device does not exist.
    """
    with _started_job(config) as job:
        encoded = _encode_all(job.tasks, config.num_workers)
        manifest = Manifest(
            kind="token",
            shards=tuple(item.shard for item in encoded),
            settings={
                **job.settings,
                **_text_settings(encoded),
                "pixels": config.keep_pixels,
            },
            lineage=job.lineage,
        )
        write_manifest(job.folder / "shards", manifest)
        commit_folder(job.folder / "shards", job.output_dir)
        remove_work_folder(job.output_dir, "encoding")
    return manifest


def _text_settings(encoded: list[_EncodedShard]) -> dict[str, Any]:
    """Return the manifest's settings about the captions."""
    lengths: Counter[int] = Counter()
    for item in encoded:
        lengths.update(item.caption_lengths)
    return {
        "max_text_tokens": max(lengths) - 1,  # this and the next count no special ids
        "num_text_tokens": sum((length - 1) * count for length, count in lengths.items()),
        CAPTION_LENGTHS: {str(length): lengths[length] for length in sorted(lengths)},
    }


def encode_part(config: EncodeShardsConfig) -> int:
    """Encode every `num_parts`-th image shard, without the rest and the manifest.

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
        _encode_all(part, config.num_workers)
    return len(part)


@contextmanager
def _started_job(config: EncodeShardsConfig) -> Iterator[_EncodingJob]:
    choose_device(config.device)  # refused before anything is read
    inputs = ("shards", "text_tokenizer_dir", "image_tokenizer_dir")
    output_dir = check_output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=FILE_NAME,
        inputs={name: getattr(config, name) for name in inputs},
    )
    images = read_manifest(Path(config.shards), "image")
    text_tokenizer = TextTokenizer.load(Path(config.text_tokenizer_dir))
    image_tokenizer, image_tokenizer_sha256 = load_image_tokenizer(Path(config.image_tokenizer_dir))
    _check_image_size(config, images, image_tokenizer)
    lineage = {
        "text_tokenizer": text_tokenizer.sha256,
        "image_tokenizer": image_tokenizer_sha256,
        "crop_settings": sha256_of_json(
            {name: value for name, value in images.settings.items() if name != NUM_ENLARGED}
        ),
        "image_shards": images.digest(),
    }
    job = {"lineage": lineage, "keep_pixels": config.keep_pixels}
    is_shared = config.part_index is not None
    with work_folder(output_dir, job, kind="encoding", is_shared=is_shared) as folder:
        yield _EncodingJob(
            output_dir=output_dir,
            folder=folder,
            tasks=_encoding_tasks(config, images, lineage, folder),
            settings={
                "image_size": image_tokenizer.config.image_size,
                "grid_size": image_tokenizer.config.grid_size,
                "codebook_size": image_tokenizer.config.codebook_size,
                "text_vocab_size": text_tokenizer.vocab_size,
            },
            lineage=lineage,
        )


def _check_image_size(config: EncodeShardsConfig, images: Manifest, tokenizer: VQGAN) -> None:
    size = images.settings["image_size"]
    required = tokenizer.config.image_size
    if size != required:
        raise InputError(
            f"shards={config.shards} hold images of {size} pixels, image_tokenizer_dir="
            f"{config.image_tokenizer_dir} was trained on {required}: build shards with "
            f"image_size={required}, or name a tokenizer trained on {size}"
        )
    if not images.shards:
        raise InputError(f"shards={config.shards} hold no samples: build the shards again")


def _encoding_tasks(
    config: EncodeShardsConfig, images: Manifest, lineage: Mapping[str, str], work: Path
) -> list[_EncodingTask]:
    return [
        _EncodingTask(
            source=Path(config.shards),
            shard=shard,
            output=work / "shards" / shard_name(SHARD_PREFIX, index),
            record=work / "records" / f"{index:05d}.json",
            lock=work / "records" / f"{index:05d}.lock",
            text_tokenizer=Path(config.text_tokenizer_dir),
            image_tokenizer=Path(config.image_tokenizer_dir),
            lineage=lineage,
            batch_size=config.batch_size,
            device=config.device,
            keep_pixels=config.keep_pixels,
        )
        for index, shard in enumerate(images.shards)
    ]


def _encode_all(tasks: list[_EncodingTask], num_workers: int) -> list[_EncodedShard]:
    """Encode every unfinished shard; return the records of all shards in order."""
    waiting = [task for task in tasks if _read_record(task) is None]
    if len(waiting) < len(tasks):
        logger.info("%d of %d shards are encoded already", len(tasks) - len(waiting), len(tasks))
    # The worker processes share the cores.
    num_threads = max(1, torch.get_num_threads() // max(1, num_workers))
    done = map_in_order(
        _encode_shard,
        waiting,
        num_workers=num_workers,
        initializer=torch.set_num_threads,
        initializer_arguments=(num_threads,),
    )
    for _ in progress(done, total=len(waiting), what="encode shards", unit="shards"):
        pass
    records = [record for task in tasks if (record := _read_record(task)) is not None]
    if len(records) < len(tasks):
        raise InputError(
            f"{len(tasks) - len(records)} token shards in {tasks[0].output.parent} changed after "
            "they were written: look for another program that writes there, or a failing disk, "
            "and start again"
        )
    return records


def _read_record(task: _EncodingTask) -> _EncodedShard | None:
    """Return the record of a token shard, or None if it is missing or does not match."""
    if not task.record.is_file():
        return None
    try:
        content = read_object(task.record)
        shard = shard_of(content.get("shard"), str(task.record))
        verify_shard(task.output.parent, shard)
        lengths = caption_lengths_of(content.get(CAPTION_LENGTHS), shard.samples)
    except InputError as error:
        logger.warning("encoding %s again: %s", task.shard.file, error)
        return None
    return _EncodedShard(shard=shard, caption_lengths=lengths)


def _encode_shard(task: _EncodingTask) -> None:
    """Write one token shard and then its record, unless another process has just done so."""
    task.lock.touch()
    with locked(task.lock) as is_locked:
        if is_locked is False:
            raise InputError(
                f"{task.output} is being encoded by another process: wait for its end, then start "
                "again"
            )
        if _read_record(task) is None:
            _write_token_shard(task)


def _write_token_shard(task: _EncodingTask) -> None:
    text_tokenizer, image_tokenizer = _load_tokenizers(
        task.text_tokenizer,
        task.image_tokenizer,
        device=task.device,
        text_sha256=task.lineage["text_tokenizer"],
        image_sha256=task.lineage["image_tokenizer"],
    )
    samples = read_shard(task.source, task.shard)
    location = str(task.source / task.shard.file)
    text_ids = [text_tokenizer.encode(caption_of(sample, location)) for sample in samples]
    codes = _encode_images(task, samples, image_tokenizer)
    kept = [name for name in PICTURE_MEMBERS if task.keep_pixels and name in task.shard.members]
    tokens: Iterator[Sample] = (
        {
            KEY: sample[KEY],
            CODES: _npy_bytes(grid),
            TEXT: _npy_bytes(np.array(ids, dtype=np.int32)),
            "json": sample["json"],
            **{name: sample[name] for name in kept},
        }
        for sample, ids, grid in zip(samples, text_ids, codes, strict=True)
    )
    shard = write_shard(task.output, tokens, members=(*MEMBERS, *kept))
    assert shard is not None  # the manifest lists no shard without samples
    lengths = Counter(len(ids) + 1 for ids in text_ids)  # one more for the end of text
    record = _EncodedShard(shard=shard, caption_lengths=dict(lengths))
    write_json(task.record, asdict(record))


def _encode_images(
    task: _EncodingTask, samples: list[Sample], image_tokenizer: VQGAN
) -> Iterator[np.ndarray]:
    """Yield each sample's codes, uint16 [grid, grid]."""
    config, device = image_tokenizer.config, next(image_tokenizer.parameters()).device
    for first in range(0, len(samples), task.batch_size):
        batch = samples[first : first + task.batch_size]
        images = [_open_image(task, sample, config.image_size) for sample in batch]
        with torch.inference_mode():
            codes = image_tokenizer.encode(from_pictures(images).to(device))
        assert codes.shape == (len(batch), config.grid_size, config.grid_size), codes.shape
        assert 0 <= int(codes.min()) <= int(codes.max()) < config.codebook_size
        yield from codes.cpu().numpy().astype(np.uint16)


def _open_image(task: _EncodingTask, sample: Sample, image_size: int) -> Image.Image:
    try:
        return picture_of(sample).open(image_size)
    except DamagedSampleError as error:
        raise InputError(f"shard {task.source / task.shard.file}: {error}") from error


# Loaded once per process; the hashes are part of the key, so that tokenizers replaced under the
# same path are loaded again.
@lru_cache(maxsize=1)
def _load_tokenizers(
    text_folder: Path, image_folder: Path, *, device: str, text_sha256: str, image_sha256: str
) -> tuple[TextTokenizer, VQGAN]:
    text_tokenizer = TextTokenizer.load(text_folder)
    image_tokenizer, sha256 = load_image_tokenizer(image_folder)
    if (text_tokenizer.sha256, sha256) != (text_sha256, image_sha256):
        raise InputError(
            f"a tokenizer in {text_folder} or {image_folder} was replaced while shards were "
            "encoded: start the program again"
        )
    return text_tokenizer, image_tokenizer.to(choose_device(device))


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
