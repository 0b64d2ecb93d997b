"""Workers change nothing but speed, say what they wait for, and leave nothing behind."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.batches.token_batches import Batch, TokenSequence
from ernie_vilg.data.batches.workers import OnWait, PrefetchedSteps
from ernie_vilg.data.sequence import sample_reader
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.sample_reader import SampleReader
from ernie_vilg.data.shards.damage import DamagedShardError
from ernie_vilg.data.shards.open_shards import LocalFolder
from ernie_vilg.storage.shard_manifest import Manifest, Shard
from tests.data.token_shards import MODEL, sequence_of, write_token_shards

REPLICA = ReplicaSlice(batch_sizes=BatchSizes(full=8), data_rank=0, data_size=1)


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, Manifest]:
    return tmp_path, write_token_shards(tmp_path, [20, 20])


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """Check that no process and no shared memory outlives the test."""
    processes, memory = set(multiprocessing.active_children()), shared_memory()
    yield
    deadline = time.monotonic() + 10  # threads that feed queues end a moment after their workers
    while shared_memory() - memory and time.monotonic() < deadline:
        gc.collect()  # semaphores are removed with the queues that own them
        time.sleep(0.1)
    assert set(multiprocessing.active_children()) <= processes
    assert shared_memory() <= memory


def shared_memory() -> set[str]:
    """Return the names of what torch and multiprocessing share; other programs have their own."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("torch_", "sem."))}


def batches_of(
    shards: tuple[Path, Manifest], loader: LoaderConfig, **options: Any
) -> StepSamples[Batch]:
    return StepSamples(sequence_of(*shards, MODEL, loader=loader), REPLICA, **options)


def numbers(batches: StepSamples[Batch], step: int) -> list[int]:
    return batches.at(step).content.codes[:, 0].tolist()


def test_a_killed_worker_is_an_error_and_the_next_run_goes_on(
    shards: tuple[Path, Manifest], no_leftovers: None
) -> None:
    with closing(batches_of(shards, LoaderConfig(num_workers=0))) as expected:
        sequence = [numbers(expected, step) for step in range(1, 61)]
    before = set(multiprocessing.active_children())
    loader = LoaderConfig(num_workers=2, timeout_seconds=60)
    seen = []

    with closing(batches_of(shards, loader)) as batches:
        seen += [numbers(batches, 1), numbers(batches, 2)]
        workers = set(multiprocessing.active_children()) - before
        assert len(workers) == 2
        os.kill(next(iter(workers)).pid or 0, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"data worker with pid \[\d+\] ended .*worker 0: "):
            seen += (numbers(batches, step) for step in range(3, 61))
    done = len(seen)
    with closing(batches_of(shards, loader)) as batches:
        seen += [numbers(batches, step) for step in range(done + 1, done + 5)]

    assert seen == sequence[: done + 4]


class StalledFolder(LocalFolder):
    """A folder whose second shard takes for ever."""

    def open(self, shard: Shard) -> BinaryIO:
        if shard.file == "tokens-00001.tar":
            time.sleep(3600)
        return super().open(shard)


class StalledSteps:
    """Reads steps from such a folder."""

    def __init__(self, sequence: TokenSequence, on_wait: OnWait) -> None:
        sample_reader.open_folder = lambda location, loader: StalledFolder(location)
        self._reader = SampleReader(sequence, on_wait)

    def at(self, step: int) -> Any:
        return self._reader.read(REPLICA.positions(step)).content.codes

    def close(self) -> None:
        self._reader.close()


def test_a_stalled_read_is_an_error_that_names_the_shard(
    shards: tuple[Path, Manifest], no_leftovers: None
) -> None:
    sequence = sequence_of(*shards, MODEL)
    loader = LoaderConfig(num_workers=1, timeout_seconds=2)
    started = time.monotonic()

    with (
        closing(PrefetchedSteps(partial(StalledSteps, sequence), loader)) as steps,
        pytest.raises(TimeoutError, match=r"no batch for 2 s .*reading shard .*tokens-00001.tar"),
    ):
        steps.at(1)

    assert time.monotonic() - started < 30


def test_an_error_of_a_worker_is_that_of_the_rank(
    shards: tuple[Path, Manifest], no_leftovers: None
) -> None:
    folder, manifest = shards
    (folder / manifest.shards[0].file).unlink()

    with (
        closing(batches_of(shards, LoaderConfig(num_workers=1))) as batches,
        pytest.raises(DamagedShardError, match=r"tokens-00000.tar is missing") as caught,
    ):
        batches.at(1)

    assert caught.value.reason == "missing"


def test_closing_ends_every_process(shards: tuple[Path, Manifest], no_leftovers: None) -> None:
    batches = batches_of(shards, LoaderConfig(num_workers=2))
    before = set(multiprocessing.active_children())
    numbers(batches, 1)
    assert len(set(multiprocessing.active_children()) - before) == 2

    batches.close()
    batches.close()  # twice is once

    assert set(multiprocessing.active_children()) == before


PARENT = """
import multiprocessing, os, signal, sys, time
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.storage.shard_manifest import read_manifest
from tests.data.batches.test_workers import batches_of, numbers

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    batches = batches_of((folder, read_manifest(folder, "token")), LoaderConfig(num_workers=2))
    numbers(batches, 1)
    workers = [process.pid for process in multiprocessing.active_children()]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for pid in (*workers, _forkserver._forkserver_pid):
            os.kill(pid, number)
    time.sleep(6)  # torch's workers look every 5 s whether their parent is there
    for step in range(2, 21):
        numbers(batches, step)
    os.kill(workers[0], signal.SIGSTOP)
    print(*workers, _forkserver._forkserver_pid, flush=True)
    time.sleep(3600)
"""


def test_workers_outlive_a_schedulers_signal_but_not_their_rank(
    shards: tuple[Path, Manifest], tmp_path: Path
) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(
        [sys.executable, str(program), str(shards[0])],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(pids) == 3

    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their rank"
        time.sleep(0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_for_a_gpu_are_in_pinned_memory(
    shards: tuple[Path, Manifest], workers: int
) -> None:
    with closing(batches_of(shards, LoaderConfig(num_workers=workers), pin_memory=True)) as batches:
        batch = batches.at(1).content

    assert batch.codes.is_pinned() and batch.text.is_pinned()  # noqa: PT018
    assert torch.equal(batch.codes.to("cuda").cpu(), batch.codes)


def test_more_workers_than_a_machine_bears_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"loader\.num_workers=100000: must be at least 0 and at most 256"
    ):
        LoaderConfig(num_workers=100_000)
