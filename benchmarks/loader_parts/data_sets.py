"""The shards that the loader is measured on, made once and reused.

Token samples have the codes of a 32 x 32 grid, 30 to 64 text ids and a JSON of half a kilobyte.
Pictures are noise that is strong at low frequencies, so that their files are as large as those of
photographs. Larger data sets are hard links to a few shards: the loader opens, hashes and indexes
each name, while the disk holds the bytes once.
"""

import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.images import image_bytes
from data_pipelines.shard_writer import shard_name, write_shard
from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.storage.shard_manifest import Manifest, Shard, ShardKind, index_path, write_manifest
from ernie_vilg.system.progress import progress

GRID_SIZE, CODEBOOK_SIZE, TEXT_VOCAB_SIZE = 32, 8192, 32768
IMAGE_SIZE = 256
IMAGE_FORMATS = {"png": "png", "jpeg": "jpg"}
"""Member of a shard by format."""
IDS = (30, 64)
"""Fewest and most text ids of a caption."""
TOKENS, STREAM, RESUMED = "tokens", "stream", "resumed"
"""Names of the data sets of token shards."""

_SETTINGS_FILE = "settings.json"
_NUM_PROCESSES = 2
_FIELD_SIZE = 1024  # pixels per side of the noise that a shard's pictures are cut from
_SPECTRAL_EXPONENT = 1.5  # at 256 pixels: 105 KB as PNG, 25 KB as JPEG of quality 95
_SENSOR_NOISE = 1.0  # standard deviation, of 255
_CAPTION = "一只橘色的猫坐在洒满阳光的窗台上, 看着外面的街道"


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Numbers of shards and samples."""

    token_shards: int = 24
    """Number of different shards that are read for speed."""
    token_samples: int = 4096
    """Pairs in each of them."""
    stream_shards: int = 250
    """Number of shards that are read for memory: links to the shards above."""
    resumed_shards: int = 14_500
    """Number of shards that are resumed: links to `resumed_files` different files."""
    resumed_samples: int = 10_000
    """Pairs in each of them."""
    resumed_files: int = 3
    """Different files."""
    png_shards: int = 1
    """Number of shards of PNG pictures."""
    jpeg_shards: int = 3
    """Number of shards of JPEG pictures, which decode in a third of the time."""
    image_samples: int = 256
    """Pictures in each of them."""


QUICK = DataSettings(
    token_shards=4,
    token_samples=512,
    stream_shards=48,
    resumed_shards=1450,
    resumed_samples=1000,
    resumed_files=2,
    png_shards=1,
    jpeg_shards=1,
    image_samples=32,
)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One shard to write."""

    path: Path
    kind: str
    """token, or a format of IMAGE_FORMATS."""
    samples: int
    seed: int


def make_data(folder: Path, settings: DataSettings) -> None:
    """Make the data sets, unless they are there.

    Args:
        folder: holds nothing else; data of other settings in it is removed.
        settings: numbers of shards and samples.
    """
    settings_file = folder / _SETTINGS_FILE
    if settings_file.is_file() and read_json(settings_file) == asdict(settings):
        return
    shutil.rmtree(folder, ignore_errors=True)
    counts = {
        TOKENS: ("token", settings.token_shards, settings.token_samples),
        f"{RESUMED}-files": ("token", settings.resumed_files, settings.resumed_samples),
        "png": ("png", settings.png_shards, settings.image_samples),
        "jpeg": ("jpeg", settings.jpeg_shards, settings.image_samples),
    }
    tasks = [
        _Task(path=folder / name / shard_name(name, index), kind=kind, samples=samples, seed=number)
        for number, (name, index, kind, samples) in enumerate(
            (name, index, kind, samples)
            for name, (kind, shards, samples) in counts.items()
            for index in range(shards)
        )
    ]
    shards = _write_all(tasks)
    for name, (kind, _, _) in counts.items():
        of_this = tuple(shards[task.path] for task in tasks if task.path.parent.name == name)
        write_manifest(folder / name, _manifest("token" if kind == "token" else "image", of_this))
    _link(folder / TOKENS, folder / STREAM, settings.stream_shards, shards)
    _link(folder / f"{RESUMED}-files", folder / RESUMED, settings.resumed_shards, shards)
    write_json(settings_file, asdict(settings))  # last: an interrupted run leaves none


def _write_all(tasks: list[_Task]) -> dict[Path, Shard]:
    for folder in {task.path.parent for task in tasks}:
        folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_NUM_PROCESSES, mp_context=context) as pool:
        futures = {pool.submit(_write, task): task.path for task in tasks}
        done = progress(as_completed(futures), total=len(tasks), what="make data", unit="shards")
        return {futures[future]: future.result() for future in done}


def _write(task: _Task) -> Shard:
    random = np.random.default_rng(task.seed)
    numbers = range(task.seed * 100_000, task.seed * 100_000 + task.samples)
    samples: Iterator[Sample]
    if task.kind == "token":
        members: tuple[str, ...] = ("codes.npy", "json", "text.npy")
        samples = (token_sample(random, number) for number in numbers)
    else:
        members = ("json", IMAGE_FORMATS[task.kind], "txt")
        field = noise_picture(random, _FIELD_SIZE)
        samples = (image_sample(random, number, field, task.kind) for number in numbers)
    shard = write_shard(task.path, samples, members=members)
    assert shard is not None
    return shard


def _link(source: Path, folder: Path, count: int, shards: dict[Path, Shard]) -> None:
    """Make a data set of `count` shards that are links to the files of another."""
    folder.mkdir()
    files = sorted(path for path in shards if path.parent == source)
    linked = []
    for index in range(count):
        file = files[index % len(files)]
        shard = shards[file]
        names = [shard_name(folder.name, index)]
        names.append(index_path(Path(names[0])).name)
        for stored, name in zip(shard.files, names, strict=True):
            os.link(source / stored.file, folder / name)
        assert shard.index is not None
        linked.append(replace(shard, file=names[0], index=replace(shard.index, file=names[1])))
    write_manifest(folder, _manifest("token", tuple(linked)))


def _manifest(kind: ShardKind, shards: tuple[Shard, ...]) -> Manifest:
    settings: dict[str, Any] = {"image_size": IMAGE_SIZE}
    if kind == "token":
        settings |= {
            "grid_size": GRID_SIZE,
            "codebook_size": CODEBOOK_SIZE,
            "text_vocab_size": TEXT_VOCAB_SIZE,
            "pixels": False,
        }
    return Manifest(kind=kind, shards=shards, settings=settings, lineage={})


def token_sample(random: np.random.Generator, number: int) -> Sample:
    """Draw a pair of codes and text ids, as launch/encode_shards.py writes them."""
    ids = random.integers(4, TEXT_VOCAB_SIZE, random.integers(IDS[0], IDS[1] + 1), np.int32)
    codes = random.integers(0, CODEBOOK_SIZE, (GRID_SIZE, GRID_SIZE), np.uint16)
    return {
        KEY: f"{number:09d}".encode(),
        "codes.npy": _npy(codes),
        "json": _description(number),
        "text.npy": _npy(ids),
    }


def image_sample(
    random: np.random.Generator, number: int, field: np.ndarray, image_format: str
) -> Sample:
    """Cut a picture out of a larger one, with a caption, as launch/build_shards.py writes them."""
    top, left = random.integers(0, len(field) - IMAGE_SIZE, 2)
    picture = Image.fromarray(field[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE])
    return {
        KEY: f"{number:09d}".encode(),
        "json": _description(number),
        IMAGE_FORMATS[image_format]: image_bytes(picture, image_format),
        "txt": _CAPTION.encode(),
    }


def noise_picture(random: np.random.Generator, size: int) -> np.ndarray:
    """Draw a picture of clouds whose colours vary less than their brightness.

    Returns:
        uint8 [size, size, 3].
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1 / size
    spectrum = np.fft.rfft2(random.standard_normal((3, size, size)))
    brightness, *colours = np.fft.irfft2(spectrum / frequency**_SPECTRAL_EXPONENT, s=(size, size))
    mixed = np.stack([brightness, *(brightness + 0.3 * colour for colour in colours)], axis=-1)
    scaled = 127 + 50 * (mixed - mixed.mean()) / mixed.std()
    scaled += _SENSOR_NOISE * random.standard_normal(scaled.shape)
    return scaled.clip(0, 255).astype(np.uint8)


def _description(number: int) -> bytes:
    """Return metadata as a crawl stores it, about half a kilobyte."""
    content = {
        "caption": _CAPTION,
        "url": f"https://images.example.org/collection/{number % 997:03d}/{number:09d}_large.jpg",
        "page": f"https://www.example.org/articles/2021/{number % 12 + 1:02d}/{number}.html",
        "width": 1280,
        "height": 960,
        "similarity": 0.3127,
        "watermark": 0.0214,
        "unsafe": 0.0031,
        "licence": "unknown",
        "sha256": f"{number:064x}",
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
