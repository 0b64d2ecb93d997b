"""Where a data set's shards are, and how one becomes a local file that can be read at any offset.

Shards in a local folder are read where they are. Shards of an object store or a web server are
first copied into a cache on this node's own disk; so are local ones where a cache is set, for
folders on a slow network disk. A shard's index lies beside it and comes in the same way.

Source: ours.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Protocol

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.shards.damage import DamagedShardError
from ernie_vilg.data.shards.shard_cache import ShardCache
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import open_regular
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


class ShardFolder(Protocol):
    """The shards of one data set."""

    location: str
    """For messages: as it was given, without what may be secret in a URL."""

    def open(self, shard: StoredFile) -> BinaryIO:
        """Return a shard as a local, seekable, unbuffered file.

        Raises:
            DamagedShardError: it does not exist, or a copy is not as the manifest says.
            OSError: it cannot be read or copied.
        """

    def discard(self, shard: StoredFile) -> bool:
        """Drop the copy that `open` returned last, for what is in it.

        Returns:
            whether `open` would make a new one, which may be better.
        """

    def close(self) -> None:
        """Let go of what is held."""


def open_folder(
    location: str, loader: LoaderConfig, limits: TransferLimits = DEFAULT_LIMITS
) -> ShardFolder:
    """Prepare to read the shards at a location.

    Args:
        location: a local folder, or an s3, gs or https URL.
        loader: where copies are kept, how many bytes of them, and how often one is tried.
        limits: of one transfer; `loader.max_attempts` replaces theirs.

    Raises:
        InputError: the location is of a kind that is not read, or is remote without a cache.
        ImportError: the library that reads a remote location is not installed.
    """
    comes_from_afar = is_remote(location)
    if loader.cache_dir is None:
        if comes_from_afar:
            raise InputError(
                f"loader.cache_dir=null and {shown(location)} is remote: set loader.cache_dir to "
                "a folder on this node's own disk, into which shards are copied"
            )
        return LocalFolder(location)
    cache = ShardCache(Path(loader.cache_dir), loader.cache_bytes, loader.timeout_seconds)
    limits = replace(limits, max_attempts=loader.max_attempts)
    if comes_from_afar:
        return CachedFolder(location, RemoteFolder(location, limits).file, cache, limits)
    return CachedFolder(location, lambda name: _LocalSource(Path(location, name)), cache, limits)


class LocalFolder:
    """Shards that are read where they are."""

    def __init__(self, location: str) -> None:
        """Name the folder."""
        self.location = location

    def open(self, shard: StoredFile) -> BinaryIO:
        """Return a shard as an unbuffered file.

        Raises:
            DamagedShardError: it does not exist.
        """
        path = Path(self.location, shard.file)
        try:
            return open_regular(path, buffering=0)
        except FileNotFoundError:
            raise _missing(str(path)) from None
        except InputError as error:
            raise DamagedShardError("no_file", f"shard {error}, and copy it again") from error

    def discard(self, shard: StoredFile) -> bool:
        """Return False: the shard itself is all there is."""
        return False

    def close(self) -> None:
        """Do nothing: nothing is held."""


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
            location: of the shards, as it was given.
            source_of: from a shard's file name to what reads it.
            cache: where copies are kept.
            limits: of one transfer.
        """
        self.location = shown(location)
        self._source_of = source_of
        self._cache = cache
        self._limits = limits
        self._copied: set[str] = set()

    def open(self, shard: StoredFile) -> BinaryIO:
        """Return a shard's copy as an unbuffered file, making the copy if there is none.

        Raises:
            DamagedShardError: the shard does not exist or is not as the manifest says.
            OSError: the shard cannot be read, or the cache has no room.
        """
        file = self._cache.open(shard)
        if file is None:
            with self._cache.lock(shard):
                file = self._cache.open(shard)  # another process may have made it meanwhile
                if file is None:
                    file = self._copy(shard)
                    self._copied.add(shard.sha256)
                    return file
        self._copied.discard(shard.sha256)
        return file

    def discard(self, shard: StoredFile) -> bool:
        """Remove a copy that was found damaged.

        Returns:
            False where the copy was made, and compared with its hash, by the very `open` that
            returned it: another one would be the same.
        """
        self._cache.remove(shard)
        return shard.sha256 not in self._copied

    def close(self) -> None:
        """Do nothing: connections are closed with the process."""

    def _copy(self, shard: StoredFile) -> BinaryIO:
        source = self._source_of(shard.file)

        def transfer(target: BinaryIO) -> None:
            copy_blocks(
                source, target, num_bytes=shard.bytes, sha256=shard.sha256, limits=self._limits
            )

        try:
            return self._cache.fill(shard, transfer)
        except FileNotFoundError:
            raise _missing(source.name) from None
        except ContentDiffersError as error:
            raise DamagedShardError(
                error.reason,
                f"shard {error}: it is damaged or was replaced, copy it there again",
            ) from None


class _LocalSource:
    """A file of a folder that this node sees, such as one on a network disk."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def read(self, start: int, end: int, timeout_seconds: float) -> bytes:
        """Return the bytes from `start` up to `end`, fewer where the file ends before.

        A read of a file cannot be given up: a network disk's own time limit holds.
        """
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


def _missing(name: str) -> DamagedShardError:
    return DamagedShardError(
        "missing", f"shard {name} is missing: copy it there again or build the shards again"
    )
