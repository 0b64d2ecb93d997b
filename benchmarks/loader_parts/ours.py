"""Measurements of our loader, run by `benchmarks/loader.py` in processes of their own."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.support.measurer import Result, Task, answer, tasks
from benchmarks.support.timing import Stopwatch
from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.image_batches import ImageBatches, ImageSequence
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.batches.token_batches import Batch, TokenSequence
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.order import ReplicaSlice, SampleOrder
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_reader import SampleReader
from ernie_vilg.data.sequence.sample_sequence import DataSource, NewRows, Rows
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import LocalFolder, OpenShard, open_shard
from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.storage.shard_manifest import Manifest, ShardKind, read_manifest

TEXT_LENGTH = 64
"""Text slots."""
SHUFFLE_BLOCK_SHARDS = 16
"""The default of runs."""
MB = 1_000_000

_MEMORY_STEP = 10_000  # samples between two looks at the memory
_SAY_EVERY = 250_000  # samples


def token_sequence(folder: Path, num_workers: int) -> TokenSequence:
    """Return a data set of token shards as a run with default settings reads it."""
    manifest = read_manifest(folder, "token")
    model = ModelConfig(
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        text_vocab_size=manifest.settings["text_vocab_size"],
        text_length=TEXT_LENGTH,
        codebook_size=manifest.settings["codebook_size"],
        image_grid_size=manifest.settings["grid_size"],
    )
    return TokenSequence(
        sources=(_source(folder, manifest),),
        mixture=(MixtureSegment(first_position=0, weights=(1.0,)),),
        seed=0,
        shuffle_block_shards=SHUFFLE_BLOCK_SHARDS,
        quarantine=Quarantine(),
        loader=LoaderConfig(num_workers=num_workers),
        model=model,
        with_pixels=False,
    )


def token_batches(folder: Path, batch_size: int, num_workers: int) -> StepSamples[Batch]:
    """Return the only replica's steps of a data set of token shards."""
    return StepSamples(token_sequence(folder, num_workers), _only_replica(batch_size))


def image_batches(folder: Path, batch_size: int) -> ImageBatches:
    """Return the only rank's batches of a data set of image shards, as its pictures are."""
    manifest = read_manifest(folder, "image")
    sequence = ImageSequence(
        sources=(_source(folder, manifest),),
        mixture=(MixtureSegment(first_position=0, weights=(1.0,)),),
        seed=0,
        shuffle_block_shards=SHUFFLE_BLOCK_SHARDS,
        quarantine=Quarantine(),
        loader=LoaderConfig(num_workers=0),
        image_size=manifest.settings["image_size"],
        horizontal_flip=False,
    )
    return ImageBatches(sequence, _only_replica(batch_size))


def _only_replica(batch_size: int) -> ReplicaSlice:
    return ReplicaSlice(batch_sizes=BatchSizes(full=batch_size), data_rank=0, data_size=1)


def _source(folder: Path, manifest: Manifest) -> DataSource:
    return DataSource(name="main", location=str(folder), manifest=manifest)


def _num_steps(folder: Path, kind: ShardKind, batch_size: int) -> int:
    return read_manifest(folder, kind).num_samples // batch_size


def read_tokens(task: Task) -> Result:
    """Read an epoch: hash every shard, index it, and make batches of all samples."""
    folder, batch_size = Path(task["folder"]), task["batch_size"]
    num_steps = _num_steps(folder, "token", batch_size)
    stopwatch = Stopwatch()
    with closing(token_batches(folder, batch_size, num_workers=0)) as batches:
        for step in range(1, num_steps + 1):
            batches.at(step)
    return stopwatch.per_sample(num_steps * batch_size)


def tokens_of_worker(task: Task) -> Result:
    """Read an epoch with one worker: samples per second from the first batch on, at the rank."""
    folder, batch_size = Path(task["folder"]), task["batch_size"]
    num_steps = _num_steps(folder, "token", batch_size)
    with closing(token_batches(folder, batch_size, num_workers=1)) as batches:
        batches.at(1)
        stopwatch = Stopwatch()
        for step in range(2, num_steps + 1):
            batches.at(step)
        return stopwatch.per_sample((num_steps - 1) * batch_size)


def read_images(task: Task) -> Result:
    """Read an epoch of pictures, without a cache of decoded ones."""
    folder, batch_size = Path(task["folder"]), task["batch_size"]
    num_steps = _num_steps(folder, "image", batch_size)
    stopwatch = Stopwatch()
    with closing(image_batches(folder, batch_size)) as batches:
        for step in range(1, num_steps + 1):
            batches.at(step)
    return stopwatch.per_sample(num_steps * batch_size)


def memory(task: Task) -> Result:
    """Look at the resident memory of a rank without workers while it reads a data set."""
    process = psutil.Process()
    imported = process.memory_info().rss / MB
    looks = _look_while_reading(task, 0, lambda: process.memory_info().rss)
    return {"imported": imported, **looks, "peak": _peak_mb()}


def memory_of_worker(task: Task) -> Result:
    """Look at the memory of a rank and its worker.

    Each process counts its part of shared pages (proportional set size).
    """
    rank = psutil.Process()

    def look() -> int:
        family = [rank, *rank.children(recursive=True)]
        return sum(process.memory_full_info().pss for process in family)

    return _look_while_reading(task, 1, look)


def _look_while_reading(task: Task, num_workers: int, look: Callable[[], int]) -> Result:
    folder, batch_size = Path(task["folder"]), task["batch_size"]
    num_steps = _num_steps(folder, "token", batch_size)
    num_steps = min(num_steps, task["samples"] // batch_size)
    samples, mb, said = [], [], 0
    with closing(token_batches(folder, batch_size, num_workers)) as batches:
        for step in range(1, num_steps + 1):
            batches.at(step)
            done = step * batch_size
            if done // _MEMORY_STEP > len(samples):
                samples.append(done)
                mb.append(look() / MB)
            if done // _SAY_EVERY > said:
                said = done // _SAY_EVERY
                print(f"{done:,} samples read, {mb[-1]:.0f} MB", flush=True)
    return {"samples": samples, "mb": mb}


def _peak_mb() -> float:
    # Not getrusage: it also counts what this process was before it became this program.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / MB  # in KiB there


class _TimedRows:
    """Measures the time of reading and decoding tokens."""

    def __init__(self, rows: Rows[Batch], seconds: dict[str, float]) -> None:
        self._rows = rows
        self._seconds = seconds

    def fetch(self, data_set: int, opened: OpenShard, indices: list[int], rows: list[int]) -> None:
        started = time.thread_time()
        self._rows.fetch(data_set, opened, indices, rows)
        self._seconds["read"] += time.thread_time() - started

    def decode(self, rows: list[int]) -> Mapping[int, DamagedSampleError]:
        started = time.thread_time()
        failed = self._rows.decode(rows)
        self._seconds["decode"] += time.thread_time() - started
        return failed

    def content(self) -> Batch:
        return self._rows.content()


def _timed(new_rows: NewRows[Batch], seconds: dict[str, float]) -> NewRows[Batch]:
    return lambda positions: _TimedRows(new_rows(positions), seconds)


def profile(task: Task) -> Result:
    """Return the processor seconds of a token sample by part, each part timed alone."""
    folder, batch_size = Path(task["folder"]), task["batch_size"]
    sequence = token_sequence(folder, 0)
    manifest = sequence.sources[0].manifest
    seconds = {"hash": 0.0, "index": 0.0, "order": 0.0, "read": 0.0, "decode": 0.0}
    _profile_opening(folder, manifest, seconds)
    order = SampleOrder(manifest, sequence.seed, sequence.shuffle_block_shards)
    batches = np.arange(manifest.num_samples // batch_size * batch_size).reshape(-1, batch_size)
    started = time.thread_time()
    for positions in batches:
        order.locate_all(positions)
    seconds["order"] = time.thread_time() - started
    reading = _profile_reading(sequence, batches, seconds)
    seconds["rest"] = reading - seconds["order"] - seconds["read"] - seconds["decode"]
    return {name: value / batches.size for name, value in seconds.items()}


def _profile_opening(folder: Path, manifest: Manifest, seconds: dict[str, float]) -> None:
    for shard in manifest.shards:
        started = time.thread_time()
        sha256_of_file(folder / shard.file)
        hashed = time.thread_time()
        open_shard(LocalFolder(str(folder)), shard).file.close()
        seconds["hash"] += hashed - started
        seconds["index"] += time.thread_time() - hashed - (hashed - started)


def _profile_reading(
    sequence: TokenSequence, batches: np.ndarray, seconds: dict[str, float]
) -> float:
    """Read all batches from open shards; return the total seconds."""
    with closing(SampleReader(sequence)) as reader:
        reader._new_rows = _timed(reader._new_rows, seconds)
        for shard_index in range(len(sequence.sources[0].manifest.shards)):
            reader.sample(0, shard_index, 0)
        started = time.thread_time()
        for positions in batches:
            reader.read(positions)
        return time.thread_time() - started


MEASUREMENTS = {
    "tokens": read_tokens,
    "tokens_of_worker": tokens_of_worker,
    "images": read_images,
    "memory": memory,
    "memory_of_worker": memory_of_worker,
    "profile": profile,
}


def main() -> None:
    """Answer tasks."""
    torch.set_num_threads(1)
    for task in tasks():
        answer(MEASUREMENTS[task["measure"]](task))


if __name__ == "__main__":
    main()
