"""Writes one rank's files of a checkpoint in a thread, while training goes on.

The thread hashes each file while it writes it, flushes it to the device, drops it from the page
cache and reads it back: if the hash is the same, the device has the file. The thread talks to no
other rank; the main threads exchange the results, in `checkpoints.py`.
"""

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ernie_vilg.parallel.layout.device_threads import device_thread
from ernie_vilg.runs.phases import Phases
from ernie_vilg.storage.files import fsync_folder, sha256_of_file

_BLOCK_BYTES = 4 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """The manifest's entry of a file."""

    file: str
    """Path relative to the checkpoint."""
    bytes: int
    """File size."""
    sha256: str
    """Hash of its content, 64 hexadecimal digits."""
    rank: int
    """Rank that wrote it."""


@dataclass(frozen=True, kw_only=True)
class WriteResult:
    """The result of one rank's part of a save."""

    rank: int
    """Rank that wrote."""
    files: tuple[FileEntry, ...] = ()
    """Entries of all its files; none if it failed."""
    failure: str | None = None
    """Reason of the failure, for people; None if it succeeded."""
    seconds: float = 0.0
    """Seconds from the first byte to the last one read back."""


class RankWriter:
    """Writes one rank's files, one checkpoint at a time."""

    def __init__(self, phases: Phases) -> None:
        """Prepare to write.

        Args:
            phases: is told of the points that the thread passes.
        """
        self._phases = phases
        self._thread: threading.Thread | None = None
        self._result: WriteResult | None = None

    @property
    def is_writing(self) -> bool:
        """Whether the thread is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self, folder: Path, files: Mapping[str, Any], rank: int, device: torch.device
    ) -> None:
        """Begin to write.

        Args:
            folder: the checkpoint under its temporary name.
            files: content by path; it must not change until `result`.
            rank: this rank.
            device: this rank's device, from which the content may have been copied to pinned
                memory.
        """
        assert not self.is_writing, "one checkpoint at a time"
        self._thread = device_thread(
            partial(self._run, folder, dict(files), rank),
            device,
            name="checkpoint-writer",
            daemon=False,
        )
        self._thread.start()

    def wait(self, timeout_seconds: float) -> None:
        """Wait until the thread ends, for at most `timeout_seconds`."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def result(self) -> WriteResult:
        """Wait until the thread ends and return its result."""
        assert self._thread is not None, "started before"
        self._thread.join()
        assert self._result is not None, "the thread leaves one even if it fails"
        return self._result

    def _run(self, folder: Path, files: Mapping[str, Any], rank: int) -> None:
        started = time.monotonic()
        try:
            entries = self._write(folder, files, rank)
        except OSError as error:
            self._result = WriteResult(rank=rank, failure=str(error))
        except Exception as error:  # nothing catches a thread's error: the main thread reads it
            logger.exception("rank %d could not write its part of %s", rank, folder)
            self._result = WriteResult(rank=rank, failure=f"{type(error).__name__}: {error}")
        else:
            self._result = WriteResult(rank=rank, files=entries, seconds=time.monotonic() - started)

    def _write(self, folder: Path, files: Mapping[str, Any], rank: int) -> tuple[FileEntry, ...]:
        self._phases.point("save: before data")
        entries = []
        for name, content in files.items():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                size, sha256 = write_proven(path, content)
            except OSError as error:  # a write's error does not name the file
                raise OSError(error.errno, error.strerror, name) from error
            entries.append(FileEntry(file=name, bytes=size, sha256=sha256, rank=rank))
            self._phases.point(f"save: after file {name}")
        for parent in sorted({(folder / name).parent for name in files}):
            fsync_folder(parent)
        return tuple(entries)


def write_proven(path: Path, content: Any) -> tuple[int, str]:
    """Write a file with `torch.save`, read it back, and return its size and SHA-256.

    Args:
        path: the new file.
        content: anything that torch can pickle.

    Raises:
        OSError: the file could not be written, or was read back with other content.
    """
    with path.open("wb") as file:
        hashing = _HashingFile(file)
        torch.save(content, hashing)  # type: ignore[arg-type]
        if hashing.failure is not None:
            raise hashing.failure
        file.flush()
        os.fsync(file.fileno())
        drop_from_page_cache(file)
    if sha256_of_file(path) != hashing.sha256.hexdigest():
        raise OSError(errno.EIO, "what was read back is not what was written", str(path))
    with path.open("rb") as file:
        drop_from_page_cache(file)  # it would evict the data that training reads
    return hashing.num_bytes, hashing.sha256.hexdigest()


def drop_from_page_cache(file: BinaryIO) -> None:
    """Make the next reader of a flushed file read the device, where the system supports it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _HashingFile:
    """Hashes the bytes that torch writes.

    After a failure it discards the rest, so that torch's writer ends without an error of its own,
    which would name positions in the file and not the disk's error.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes; return their number."""
        view = memoryview(content).cast("B")
        for start in range(0, len(view), _BLOCK_BYTES):
            if self.failure is None:
                self._write_block(view[start : start + _BLOCK_BYTES])
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: `write_proven` flushes the file."""

    def _write_block(self, block: memoryview) -> None:
        try:
            if not threading.main_thread().is_alive():
                raise OSError(errno.ECANCELED, "the run has ended")
            self._file.write(block)
        except OSError as error:
            self.failure = error
        self.sha256.update(block)
