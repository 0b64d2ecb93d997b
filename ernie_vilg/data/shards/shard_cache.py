"""Copies of shards on a node's own disk, shared by all its processes.

The name of a cached file is its SHA-256, so that all data sets with the same bytes share a copy; a
shard's index is cached in the same way. One process copies a shard while the other processes of the
node wait for it. A copy grows under a temporary name and is renamed when its size and hash are
right, so a killed process leaves no partial shard under a readable name, and no lock. The cache
has a maximum size: the least recently used shards are evicted before a copy begins.
"""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from ernie_vilg.storage.files import WRITING_PREFIX, fsync_folder, writing_path
from ernie_vilg.storage.shard_manifest import StoredFile

_SHARD_NAME = re.compile(r"([0-9a-f]{64})\.tar")
_TEMPORARY_NAME = re.compile(rf"{re.escape(WRITING_PREFIX)}([0-9a-f]{{64}})\.tar")
_LOCKS_FOLDER = "locks"
_EVICTION_LOCK = "room"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_QUIET_SECONDS = 30.0
"""Wait for another process after which a message is logged."""
_POLL_SECONDS = 0.05

logger = logging.getLogger(__name__)


class ShardCache:
    """A folder of this node's disk with copies of shards, shared by all its processes."""

    def __init__(self, folder: Path, max_bytes: int, wait_seconds: float) -> None:
        """Make the folder if there is none.

        Args:
            folder: folder on a disk of this node; foreign files in it are not touched.
            max_bytes: bytes of all copies, unfinished ones included.
            wait_seconds: timeout of the wait for another process.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._wait_seconds = wait_seconds
        Path(os.path.realpath(folder), _LOCKS_FOLDER).mkdir(parents=True, exist_ok=True)

    def open(self, shard: StoredFile) -> BinaryIO | None:
        """Return a shard's copy as an unbuffered file; None if there is no copy."""
        try:
            file = self._path(shard).open("rb", buffering=0)
        except FileNotFoundError:
            return None
        _mark_used(file)
        return file

    def remove(self, shard: StoredFile) -> None:
        """Remove a shard's copy, if there is one; processes that have it open keep reading it."""
        self._path(shard).unlink(missing_ok=True)

    @contextmanager
    def lock(self, shard: StoredFile) -> Iterator[None]:
        """Keep the node's other processes and threads from copying a shard.

        Raises:
            OSError: another one has been copying it for too long.
        """
        # A lock of the kernel, which ends with the process that holds it. Its file stays: removing
        # it while a third process waits for it would let two processes in.
        lock = self._lock_of(shard.sha256)
        quiet = min(_QUIET_SECONDS, self._wait_seconds)
        try:
            lock.acquire(timeout=quiet)
        except Timeout:
            logger.warning("waiting for another process of this node to copy %s", shard.file)
            try:
                lock.acquire(timeout=self._wait_seconds - quiet)
            except Timeout:
                raise OSError(
                    f"another process of this node has been copying shard {shard.file} into "
                    f"{self._folder} for loader.timeout_seconds={self._wait_seconds:g}: see why it "
                    "hangs (fuser names it), or allow more seconds"
                ) from None
        try:
            yield
        finally:
            lock.release()

    def fill(self, shard: StoredFile, transfer: Callable[[BinaryIO], None]) -> BinaryIO:
        """Make a shard's copy and return it as an unbuffered file.

        Args:
            shard: the shard's entry in the manifest; the caller holds its lock.
            transfer: writes the shard to a file and checks it.

        Raises:
            OSError: the cache is full.
        """
        temporary = self._reserve(shard)
        try:
            with temporary.open("r+b") as file:
                transfer(file)
                file.flush()
                os.fsync(file.fileno())
            # Open it under its old name: under the new one it may be evicted at any time.
            copy = temporary.open("rb", buffering=0)
            _mark_used(copy)
            temporary.replace(self._path(shard))
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise self._disk_full(shard) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(self._folder)
        return copy

    def _reserve(self, shard: StoredFile) -> Path:
        """Evict and allocate: return a file of the shard's size under a temporary name."""
        if shard.bytes > self._max_bytes:
            raise OSError(
                f"shard {shard.file} has {shard.bytes} bytes and loader.cache_bytes="
                f"{self._max_bytes}: allow more"
            )
        deadline = time.monotonic() + self._wait_seconds
        while True:
            with self._lock_of(_EVICTION_LOCK):
                if self._evict(shard):
                    return self._allocate(shard)
            if time.monotonic() > deadline:
                raise OSError(
                    f"loader.cache_bytes={self._max_bytes} is full of shards that other processes "
                    f"of this node are copying: allow more than {shard.bytes} bytes for each rank"
                )
            time.sleep(_POLL_SECONDS)

    def _evict(self, shard: StoredFile) -> bool:
        """Remove copies until one more shard fits; return whether it fits."""
        entries = [_Entry.of(path) for path in self._folder.iterdir()]
        copies, being_made = [], 0
        for entry in filter(None, entries):
            if not entry.is_temporary:
                copies.append(entry)
            elif entry.sha256 == shard.sha256 or self._is_left_over(entry.sha256):
                entry.path.unlink(missing_ok=True)
            else:
                being_made += entry.bytes
        used = being_made + sum(copy.bytes for copy in copies)
        for copy in sorted(copies, key=lambda copy: copy.used_at):
            fits = used + shard.bytes <= self._max_bytes
            if fits and shutil.disk_usage(self._folder).free >= shard.bytes:
                break
            if fits:
                logger.warning(
                    "the disk of %s is nearly full: evicting a cached shard before "
                    "loader.cache_bytes is reached",
                    self._folder,
                )
            # A process that has it open can still read it; the disk frees its bytes afterwards.
            copy.path.unlink(missing_ok=True)
            used -= copy.bytes
        return used + shard.bytes <= self._max_bytes

    def _is_left_over(self, sha256: str) -> bool:
        """Return whether the writer of an unfinished copy was killed: nobody holds its lock."""
        lock = self._lock_of(sha256)
        try:
            with lock.acquire(blocking=False):
                return True
        except Timeout:
            return False

    def _allocate(self, shard: StoredFile) -> Path:
        temporary = writing_path(self._path(shard))
        with temporary.open("wb") as file:
            try:
                # Allocate blocks of the disk, so that other processes see what is left.
                os.posix_fallocate(file.fileno(), 0, shard.bytes)
            except OSError as error:
                temporary.unlink()
                if error.errno in _DISK_FULL:
                    raise self._disk_full(shard) from None
                raise
        return temporary

    def _disk_full(self, shard: StoredFile) -> OSError:
        free = shutil.disk_usage(self._folder).free
        return OSError(
            f"loader.cache_dir={self._folder} has {free} bytes free where shard {shard.file} needs "
            f"{shard.bytes}: free some on its disk, or name a folder on another one"
        )

    def _path(self, shard: StoredFile) -> Path:
        return self._folder / f"{shard.sha256}.tar"

    def _lock_of(self, name: str) -> FileLock:
        path = self._folder / _LOCKS_FOLDER / name
        # A disk without such locks is an error: a soft lock would outlive its holder.
        return FileLock(path, poll_interval=_POLL_SECONDS, fallback_to_soft=False)


def _mark_used(file: BinaryIO) -> None:
    """Set the time that decides eviction; the kernel's own time is only exact to 4 ms."""
    now = time.time_ns()
    os.utime(file.fileno(), ns=(now, now))


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A copy in the cache, finished or not."""

    path: Path
    sha256: str
    is_temporary: bool
    bytes: int
    used_at: int

    @staticmethod
    def of(path: Path) -> "_Entry | None":
        """Describe a file; None for a foreign file and for one that is gone."""
        temporary = _TEMPORARY_NAME.fullmatch(path.name)
        match = temporary or _SHARD_NAME.fullmatch(path.name)
        if match is None:
            return None
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        return _Entry(
            path=path,
            sha256=match[1],
            is_temporary=temporary is not None,
            bytes=status.st_size,
            used_at=status.st_mtime_ns,
        )
