"""Shared memory that is too small, or littered, is seen at the start."""

import mmap
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.shared_memory import check_shared_memory, remove_leftovers, step_bytes
from tests.data.token_shards import MODEL, sequence_of, write_token_shards

_SMALL = "mount -t tmpfs -o size=16m tmpfs /dev/shm"


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-m", "sh", "-c", _SMALL], capture_output=True).returncode == 0
    )


def run_in_small_shared_memory(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program with 16 MB of shared memory of its own."""
    command = f'{_SMALL} && exec "$0" -c "$1"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", command, sys.executable, textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(not can_mount(), reason="this machine lets nobody mount a file system")
def test_batches_that_do_not_fit_into_a_real_dev_shm_are_refused_before_a_worker_starts() -> None:
    """Row 49: 16 MB, and batches of 5 MB, of which 4 and 8 are needed."""
    done = run_in_small_shared_memory(
        """
        from ernie_vilg.config.loader import LoaderConfig
        from ernie_vilg.data.batches.shared_memory import check_shared_memory
        loader = LoaderConfig(num_workers=1, prefetch_steps=1)
        check_shared_memory(loader, 5 << 20, num_readers=1)
        loader = LoaderConfig(num_workers=3, prefetch_steps=2)
        try:
            check_shared_memory(loader, 5 << 20, num_readers=1)
        except ValueError as error:
            print(error)
        """
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/dev/shm has 16,777,216 bytes free, and 1 rank(s) with ")
    assert "num_workers=3 and data.loader.prefetch_steps=2 need 41,943,040" in done.stdout
    assert "--shm-size" in done.stdout


@pytest.mark.parametrize(
    ("loader", "num_readers", "fits"),
    [
        pytest.param(LoaderConfig(num_workers=2, prefetch_steps=3), 1, True, id="(6 + 2) * 10"),
        pytest.param(LoaderConfig(num_workers=2, prefetch_steps=3), 2, False, id="twice that"),
        pytest.param(LoaderConfig(num_workers=0), 9, True, id="no workers use none"),
    ],
)
def test_what_all_ranks_of_a_machine_read_ahead_must_fit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loader: LoaderConfig,
    num_readers: int,
    fits: bool,
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=80)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)

    if fits:
        check_shared_memory(loader, 10, num_readers=num_readers, folder=tmp_path)
    else:
        with pytest.raises(ValueError, match=r"80 bytes free, and 2 rank\(s\).*need 160 for"):
            check_shared_memory(loader, 10, num_readers=num_readers, folder=tmp_path)


def test_a_step_has_the_bytes_of_its_tensors(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, write_token_shards(tmp_path, [2]), MODEL)

    # int64 ids: 3 slots of text and 2 x 2 codes.
    assert step_bytes(sequence, 5) == 5 * (3 + 4) * 8


LEFTOVERS = (
    "torch_4242_1234567_0",
    "deepspeed_allreduce_buffer_0_127.0.0.1",
    "sem.mp-ab12cd",
)


def test_leftovers_of_dead_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    """Row 49: leftovers are removed at the start."""
    for name in (*LEFTOVERS, "nccl-abc", "torch_notes.txt"):
        (tmp_path / name).write_bytes(b"x" * 100)

    assert remove_leftovers(tmp_path) == sorted(tmp_path / name for name in LEFTOVERS)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["nccl-abc", "torch_notes.txt"]


def test_what_a_living_process_has_mapped_stays(tmp_path: Path) -> None:
    path = tmp_path / LEFTOVERS[0]
    with path.open("w+b") as file:
        file.truncate(4096)
        memory = mmap.mmap(file.fileno(), 4096)

    assert remove_leftovers(tmp_path) == []
    memory.close()
    assert remove_leftovers(tmp_path) == [path]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_another_user_stays(tmp_path: Path) -> None:
    path = tmp_path / LEFTOVERS[0]
    path.touch()
    os.chown(path, 12345, 12345)

    assert remove_leftovers(tmp_path) == []


def test_a_machine_without_shared_memory_has_no_leftovers(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "none") == []
