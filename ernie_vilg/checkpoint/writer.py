"""A rank's share of a checkpoint on its way to the disk, beside training.

Each file is hashed while it is written, flushed to the device, dropped from the page cache and
read back: a hash that holds says that the device has it. The thread speaks to no other rank;
whether all of them succeeded is asked by the main threads, in `checkpoints.py`.

Source: ours.
"""

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ernie_vilg.runs.phases import Phases
from ernie_vilg.storage.files import fsync_folder, sha256_of_file

_BLOCK_BYTES = 4 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What the manifest says of a file."""

    file: str
    """Name relative to the checkpoint."""
    bytes: int
    """Its size."""
    sha256: str
    """Of its content, 64 hexadecimal digits."""
    rank: int
    """The rank that wrote it."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank made of its part of a checkpoint."""

    rank: int
    """The rank."""
    files: tuple[FileEntry, ...] = ()
    """All that it wrote, if it did not fail."""
    failure: str | None = None
    """Why it failed, for people."""
    seconds: float = 0.0
    """From the first byte to the last one read back."""


class ShareWriter:
    """Writes one rank's files, one checkpoint at a time."""

    def __init__(self, phases: Phases) -> None:
        """Prepare.

        Args:
            phases: hears of the points that the thread passes.
        """
        self._phases = phases
        self._thread: threading.Thread | None = None
        self._share: Share | None = None

    @property
    def is_writing(self) -> bool:
        """Whether the thread works."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, folder: Path, files: Mapping[str, Any], rank: int) -> None:
        """Begin to write.

        Args:
            folder: the checkpoint under its temporary name.
            files: content by name; it must not change until `result`.
            rank: this one.
        """
        assert not self.is_writing, "one checkpoint at a time"
        self._thread = threading.Thread(
            target=self._run, args=(folder, dict(files), rank), name="checkpoint-writer"
        )
        self._thread.start()

    def wait(self, timeout_seconds: float) -> None:
        """Wait until the thread is done, or until so much time has passed."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    def result(self) -> Share:
        """Wait, and return what became of the share."""
        assert self._thread is not None, "started before"
        self._thread.join()
        assert self._share is not None, "the thread leaves one in any case"
        return self._share

    def _run(self, folder: Path, files: Mapping[str, Any], rank: int) -> None:
        started = time.monotonic()
        try:
            entries = self._write(folder, files, rank)
        except OSError as error:
            self._share = Share(rank=rank, failure=str(error))
        except Exception as error:  # a thread has nobody above it: the main thread asks
            logger.exception("rank %d could not write its part of %s", rank, folder)
            self._share = Share(rank=rank, failure=f"{type(error).__name__}: {error}")
        else:
            self._share = Share(rank=rank, files=entries, seconds=time.monotonic() - started)

    def _write(self, folder: Path, files: Mapping[str, Any], rank: int) -> tuple[FileEntry, ...]:
        self._phases.point("save: before data")
        entries = []
        for name, content in files.items():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                size, sha256 = write_proven(path, content)
            except OSError as error:  # of a write, it does not say of which file
                raise OSError(error.errno, error.strerror, name) from error
            entries.append(FileEntry(file=name, bytes=size, sha256=sha256, rank=rank))
            self._phases.point(f"save: after file {name}")
        for parent in sorted({(folder / name).parent for name in files}):
            fsync_folder(parent)
        return tuple(entries)


def write_proven(path: Path, content: Any) -> tuple[int, str]:
    """Write a file of torch's; return its size and SHA-256 once the device gave it back.

    Args:
        path: of the new file.
        content: whatever torch can pickle.

    Raises:
        OSError: it could not be written, or what is read back is something else.
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
        drop_from_page_cache(file)  # it would push out what training reads
    return hashing.num_bytes, hashing.sha256.hexdigest()


def drop_from_page_cache(file: BinaryIO) -> None:
    """Have the next reader of a flushed file ask the device, where the system can do that."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _HashingFile:
    """Hashes what torch writes.

    After a failure it takes the rest without writing it, so that torch's own writer comes to an
    end: its error would speak of positions in the file, and not of the disk.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes; return how many were taken."""
        view = memoryview(content).cast("B")
        for start in range(0, len(view), _BLOCK_BYTES):
            if self.failure is None:
                self._write_block(view[start : start + _BLOCK_BYTES])
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: who opened the file flushes it."""

    def _write_block(self, block: memoryview) -> None:
        try:
            if not threading.main_thread().is_alive():
                raise OSError(errno.ECANCELED, "the run has ended meanwhile")
            self._file.write(block)
        except OSError as error:
            self.failure = error
        self.sha256.update(block)
