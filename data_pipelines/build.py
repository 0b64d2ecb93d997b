"""Building of image shards, plain WebDataset tars, from raw pairs.

Each shard takes the next `samples_per_shard` pairs and one process writes it, so the bytes do not
depend on the number of processes. Unusable pairs are counted by reason and listed in
`rejected.jsonl` beside the manifest; too many of them stop the program. Pictures that are smaller
than `image_size` are enlarged and counted.
"""

import itertools
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipelines.captions import clean_caption
from data_pipelines.images import (
    NUM_ENLARGED,
    crop_and_resize,
    decode_image,
    image_bytes,
    image_settings,
)
from data_pipelines.outputs import output_folder
from data_pipelines.rejections import RejectedError, Rejection, count_reasons
from data_pipelines.shard_writer import shard_name, write_shard
from data_pipelines.sources.captions_file import CAPTIONS_FILE, read_captions_file
from data_pipelines.sources.rows import RawPair
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes
from ernie_vilg.storage.shard_manifest import FILE_NAME, Manifest, Shard, write_manifest
from ernie_vilg.system.progress import progress
from ernie_vilg.system.worker_pool import map_in_order

REJECTED_FILE = "rejected.jsonl"
SHARD_PREFIX = "images"

_EXTENSION = {"png": "png", "jpeg": "jpg"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Shards that were built, and lines that were rejected."""

    manifest: Manifest
    """Manifest of the shards."""
    rejected: Mapping[str, int]
    """Number of rejected lines by reason."""

    @property
    def num_enlarged(self) -> int:
        """Number of pictures that were smaller than `image_size`."""
        return int(self.manifest.settings[NUM_ENLARGED])


@dataclass(frozen=True, kw_only=True)
class _ShardTask:
    """One shard to write."""

    path: Path
    pairs: tuple[RawPair, ...]
    rejections: tuple[Rejection, ...]
    """Rejections of the lines between the pairs."""
    config: BuildShardsConfig


@dataclass(frozen=True, kw_only=True)
class _ShardResult:
    shard: Shard | None
    """Entry of the manifest; None if every pair was rejected."""
    rejections: tuple[Rejection, ...]
    num_enlarged: int


def build_image_shards(config: BuildShardsConfig) -> BuildReport:
    """Write image shards, their manifest and the list of rejected lines.

    Raises:
        InputError: there is nothing to read, the source changes meanwhile, `output_dir` must not be
            written, or too many lines are rejected; then `<output_dir>.rejected.jsonl` lists them.
    """
    with output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=FILE_NAME,
        inputs={"source": config.source},
    ) as folder:
        num_lines = sum(1 for _ in read_captions_file(Path(config.source)))
        results = _write_shards(config, folder, num_lines)
        rejections = [rejection for result in results for rejection in result.rejections]
        shards = tuple(result.shard for result in results if result.shard is not None)
        num_read = sum(shard.samples for shard in shards) + len(rejections)
        _check_rejections(config, rejections, num_read=num_read, num_lines=num_lines)
        _write_rejections(folder / REJECTED_FILE, rejections)
        settings = image_settings(image_size=config.image_size, image_format=config.image_format)
        settings[NUM_ENLARGED] = sum(result.num_enlarged for result in results)
        manifest = Manifest(kind="image", shards=shards, settings=settings, lineage={})
        write_manifest(folder, manifest)
    report = BuildReport(manifest=manifest, rejected=count_reasons(rejections))
    if report.num_enlarged:
        logger.warning(
            "%d of %d pictures are smaller than image_size=%d and were enlarged, which blurs them: "
            "set a smaller image_size, or leave them out of %s",
            report.num_enlarged,
            manifest.num_samples,
            config.image_size,
            CAPTIONS_FILE,
        )
    return report


def _write_shards(config: BuildShardsConfig, folder: Path, num_lines: int) -> list[_ShardResult]:
    """Write the shards, and stop early when too many lines are rejected."""
    done: list[_ShardResult] = []
    num_rejected = 0
    results = map_in_order(
        _build_shard, _shard_tasks(config, folder), num_workers=config.num_workers
    )
    expected = math.ceil(num_lines / config.samples_per_shard)
    for result in progress(results, total=expected, what="build image shards", unit="shards"):
        done.append(result)
        num_rejected += len(result.rejections)
        if num_rejected > config.max_faulty_fraction * num_lines:
            break
    return done


def _shard_tasks(config: BuildShardsConfig, folder: Path) -> Iterator[_ShardTask]:
    lines = read_captions_file(Path(config.source))
    for index in itertools.count():
        pairs, rejections = _take_pairs(lines, config.samples_per_shard)
        if not pairs and not rejections:
            return
        yield _ShardTask(
            path=folder / shard_name(SHARD_PREFIX, index),
            pairs=tuple(pairs),
            rejections=tuple(rejections),
            config=config,
        )


def _take_pairs(
    lines: Iterator[RawPair | Rejection], count: int
) -> tuple[list[RawPair], list[Rejection]]:
    """Take the next `count` pairs, and the rejections between them."""
    pairs: list[RawPair] = []
    rejections: list[Rejection] = []
    for line in lines:
        if isinstance(line, Rejection):
            rejections.append(line)
        else:
            pairs.append(line)
        if len(pairs) == count:
            break
    return pairs, rejections


def _build_shard(task: _ShardTask) -> _ShardResult:
    rejections, enlarged = list(task.rejections), list[RawPair]()
    extension = _EXTENSION[task.config.image_format]
    shard = write_shard(
        task.path,
        _samples(task, extension, rejections, enlarged),
        members=("json", "txt", extension),
    )
    rejections.sort(key=lambda rejection: rejection.row)
    return _ShardResult(shard=shard, rejections=tuple(rejections), num_enlarged=len(enlarged))


def _samples(
    task: _ShardTask, extension: str, rejections: list[Rejection], enlarged: list[RawPair]
) -> Iterator[Sample]:
    """Yield the shard's samples.

    Pairs with an unusable image are added to `rejections`, those with an image smaller than
    `image_size` to `enlarged`.
    """
    for pair in task.pairs:
        try:
            longest = task.config.max_caption_characters
            caption = clean_caption(pair.caption, max_characters=longest)
            image = decode_image(
                pair.picture.read(), pair.picture.name, max_pixels=task.config.max_image_pixels
            )
        except RejectedError as error:
            rejections.append(
                Rejection(row=pair.row, place=pair.place, reason=error.reason, detail=error.detail)
            )
            continue
        if min(image.size) < task.config.image_size:
            enlarged.append(pair)
        square = crop_and_resize(image, task.config.image_size)
        yield {
            KEY: f"{pair.row:08d}".encode(),
            extension: image_bytes(square, task.config.image_format),
            "txt": caption.encode(),
            "json": json.dumps({**pair.record, "caption": caption}, ensure_ascii=False).encode(),
        }


def _check_rejections(
    config: BuildShardsConfig, rejections: list[Rejection], *, num_read: int, num_lines: int
) -> None:
    """Raise an error if too many lines were rejected, or all of them."""
    if num_lines == 0:
        raise InputError(f"source={config.source}: its {CAPTIONS_FILE} is empty; add lines to it")
    too_many = len(rejections) > config.max_faulty_fraction * num_lines
    if not too_many and num_read != num_lines:
        raise InputError(
            f"source={config.source}: its {CAPTIONS_FILE} had {num_lines} lines and then "
            f"{num_read}: it was changed while it was read; start again when it is complete"
        )
    if not too_many and len(rejections) < num_lines:
        return
    output_dir = Path(os.path.realpath(config.output_dir))
    listing = output_dir.with_name(f"{output_dir.name}.{REJECTED_FILE}")
    _write_rejections(listing, rejections)
    counts = ", ".join(f"{reason}: {count}" for reason, count in count_reasons(rejections).items())
    rule = f"max_faulty_fraction={config.max_faulty_fraction}" if too_many else "one sample left"
    lines = f"{num_lines} lines" if num_read == num_lines else f"the first {num_read} lines"
    raise InputError(
        f"source={config.source}: {len(rejections)} of {lines} rejected ({counts}), "
        f"where {rule} is required: nothing was written but {listing}, which lists them; fix "
        "these lines, or allow a larger fraction"
    )


def _write_rejections(path: Path, rejections: list[Rejection]) -> None:
    lines = [json.dumps(asdict(rejection), ensure_ascii=False) for rejection in rejections]
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
