"""Shards that are copied onto this node's disk before they are read.

Shards of an object store or a web server are copied into a cache on this node's own disk. Shards in
a local folder are copied too where a cache is set, for folders on a slow network disk. A shard's
index lies beside it and is copied in the same way.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.shards.damage import DamagedShardError
from ernie_vilg.data.shards.open_shards import LocalFolder, ShardFolder, missing_shard
from ernie_vilg.data.shards.shard_cache import ShardCache
from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import is_remote, shown
from ernie_vilg.storage.remote import (
    DEFAULT_LIMITS,
    BlockSource,
    ContentDiffersError,
    RemoteFolder,
    TransferLimits,
    copy_blocks,
)
from ernie_vilg.storage.shard_manifest import StoredFile


def open_folder(
    location: str, loader: LoaderConfig, limits: TransferLimits = DEFAULT_LIMITS
) -> ShardFolder:
    """Prepare to read the shards at a location.

    Args:
        location: a local folder, or an s3, gs or https URL.
        loader: folder and size of the cache, and the attempts per transfer.
        limits: limits of one transfer; `loader.max_attempts` replaces theirs.

    Raises:
        InputError: the location is of an unsupported kind, or is remote without a cache.
        ImportError: the library that reads a remote location is not installed.
    """
    needs_copy = is_remote(location)
    if loader.cache_dir is None:
        if needs_copy:
            raise InputError(
                f"loader.cache_dir=null and {shown(location)} is remote: set loader.cache_dir to "
                "a folder on this node's own disk, into which shards are copied"
            )
        return LocalFolder(location)
    cache = ShardCache(Path(loader.cache_dir), loader.cache_bytes, loader.timeout_seconds)
    limits = replace(limits, max_attempts=loader.max_attempts)
    if needs_copy:
        return CachedFolder(location, RemoteFolder(location, limits).file, cache, limits)
    return CachedFolder(location, lambda name: _LocalSource(Path(location, name)), cache, limits)


class CachedFolder:
    """Shards that are copied onto this node's disk before they are read."""

    def __init__(
        self,
        location: str,
        source_of: Callable[[str], BlockSource],
        cache: ShardCache,
        limits: TransferLimits,
    ) -> None:
        """Prepare; nothing is copied yet.

        Args:
            location: location of the shards, as it was given.
            source_of: returns the reader of a file, given the file's name.
            cache: the cache of this node.
            limits: limits of one transfer.
        """
        self.location = shown(location)
        self._source_of = source_of
        self._cache = cache
        self._limits = limits
        self._copied: set[str] = set()

    def open(self, stored: StoredFile) -> BinaryIO:
        """Return the copy of a file, unbuffered; make the copy if there is none.

        Raises:
            DamagedShardError: the file does not exist or differs from the manifest.
            OSError: the file cannot be read, or the cache is full.
        """
        file = self._cache.open(stored)
        if file is None:
            with self._cache.lock(stored):
                file = self._cache.open(stored)  # another process may have made it meanwhile
                if file is None:
                    file = self._copy(stored)
                    self._copied.add(stored.sha256)
                    return file
        self._copied.discard(stored.sha256)
        return file

    def discard(self, stored: StoredFile) -> bool:
        """Remove a damaged copy.

        Returns:
            False where the last `open` made the copy itself and compared it with its hash: another
            copy would be the same.
        """
        self._cache.remove(stored)
        return stored.sha256 not in self._copied

    def _copy(self, stored: StoredFile) -> BinaryIO:
        source = self._source_of(stored.file)

        def transfer(target: BinaryIO) -> None:
            copy_blocks(
                source, target, num_bytes=stored.bytes, sha256=stored.sha256, limits=self._limits
            )

        try:
            return self._cache.fill(stored, transfer)
        except FileNotFoundError:
            raise missing_shard(source.name) from None
        except ContentDiffersError as error:
            raise DamagedShardError(
                error.reason,
                f"shard {error}: it is damaged or was replaced, copy it there again",
            ) from None


class _LocalSource:
    """A file of a mounted folder, such as a network disk's."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def read(self, start: int, end: int, timeout_seconds: float) -> bytes:
        """Return the bytes from `start` up to `end`, fewer at the end of the file.

        A read of a file cannot be cancelled: the network disk's own timeout applies.
        """
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)
