"""Shards become samples: open a shard, check it, read members at their offsets.

A shard is opened once, and every byte of it and of its index is checked against the manifest. Its
samples are then read in any order, one read per member at its offset, from the page cache. Threads
open the next shards while the open ones are being read.

Nothing is unpickled, nothing is extracted to disk.
"""

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from ernie_vilg.data.shards.damage import DamagedSampleError, DamagedShardError
from ernie_vilg.data.shards.shard_index import (
    RECORD_BYTES,
    ShardIndex,
    check_samples,
    parse_index,
)
from ernie_vilg.data.shards.tar_index import index_tar
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import open_regular
from ernie_vilg.storage.shard_manifest import Manifest, Shard, StoredFile

KEY = "__key__"
Sample = dict[str, bytes]
"""A sample's members by extension, and its key under "__key__"."""

OPENING_THREADS = 2


class ShardFolder(Protocol):
    """The shards of one data set."""

    location: str
    """The folder's name for messages, without the secret parts of a URL."""

    def open(self, stored: StoredFile) -> BinaryIO:
        """Return a shard or its index as a local, seekable, unbuffered file.

        Raises:
            DamagedShardError: it does not exist, or a copy differs from the manifest.
            OSError: it cannot be read or copied.
        """

    def discard(self, stored: StoredFile) -> bool:
        """Remove the damaged copy that `open` returned last.

        Returns:
            whether `open` would make a new copy, which may be undamaged.
        """


class LocalFolder:
    """Shards that are read where they are."""

    def __init__(self, location: str) -> None:
        """Name the folder."""
        self.location = location

    def open(self, stored: StoredFile) -> BinaryIO:
        """Return a shard or its index as an unbuffered file.

        Raises:
            DamagedShardError: it does not exist.
        """
        path = Path(self.location, stored.file)
        try:
            return open_regular(path, buffering=0)
        except FileNotFoundError:
            raise missing_shard(str(path)) from None
        except InputError as error:
            raise DamagedShardError("no_file", f"shard {error}, and copy it again") from error

    def discard(self, stored: StoredFile) -> bool:
        """Return False: there is no other copy."""
        return False


def missing_shard(name: str) -> DamagedShardError:
    """Return the error about a shard that does not exist."""
    return DamagedShardError(
        "missing", f"shard {name} is missing: copy it there again or build the shards again"
    )


@dataclass(frozen=True, kw_only=True)
class OpenShard:
    """A shard that agrees with the manifest, ready for reads by offset."""

    file: BinaryIO
    """Unbuffered file of the shard."""
    index: ShardIndex
    """Offsets and sizes of the members."""
    shard: Shard
    """The shard's entry in the manifest."""
    location: str
    """The shard's name for messages."""

    def key(self, index: int) -> str:
        """Return a sample's key."""
        key: bytes = self.index.keys[index]
        return key.decode("utf-8", "replace")

    def describe(self, index: int) -> str:
        """Name a sample for messages."""
        return f"sample {self.key(index)!r} of {self.location}"

    def problem(self, index: int) -> DamagedSampleError | None:
        """Return why a sample cannot be used, None for a sample without a problem."""
        problem = self.index.problems.get(index)
        if problem is None:
            return None
        return DamagedSampleError(
            problem.reason,
            f"{self.describe(index)} cannot be used, {problem.detail}: build the shards again",
        )

    def member(self, name: str, index: int) -> bytes:
        """Read one member of one sample."""
        content = bytearray(int(self.index.sizes[name][index]))
        self.read_into(memoryview(content), int(self.index.records[name][index]))
        return bytes(content)

    def read_into(self, view: memoryview, record: int) -> None:
        """Fill a view with the file's bytes from a record on.

        Raises:
            OSError: the file became shorter after it was opened, or cannot be read.
        """
        offset = record * RECORD_BYTES
        count = os.preadv(self.file.fileno(), [view], offset)
        while count < len(view):  # a signal or the end of the file cuts a read short
            read = os.preadv(self.file.fileno(), [view[count:]], offset + count)
            if not read:
                raise OSError(f"shard {self.location} was changed while it was being read")
            count += read

    def sample(self, index: int) -> Sample:
        """Read a whole sample.

        Raises:
            DamagedSampleError: the sample cannot be used.
        """
        problem = self.problem(index)
        if problem is not None:
            raise problem
        members = {name: self.member(name, index) for name in self.shard.members}
        return {KEY: self.key(index).encode(), **members}


def open_shard(folder: ShardFolder, shard: Shard, *, with_content: bool = True) -> OpenShard:
    """Open a shard and check every byte of it and of its index.

    Args:
        folder: the folder of the shards.
        shard: the shard's entry in the manifest.
        with_content: false checks the size and the index alone, for a caller who checks what it
            reads; the shard must have an index.

    Raises:
        DamagedShardError: it is missing or differs from the manifest.
        OSError: it cannot be read.
    """
    location = f"{folder.location}/{shard.file}"
    file = _open_checked(folder, shard, with_content=with_content)
    try:
        if shard.index is None:
            index = index_tar(file, shard.members, location)
            check_samples(len(index.keys), shard, location)
        else:
            with _open_checked(folder, shard.index) as index_file:
                index_file.seek(0)
                index = parse_index(index_file.read(), shard, location)
    except BaseException:
        file.close()
        raise
    return OpenShard(file=file, index=index, shard=shard, location=location)


def _open_checked(
    folder: ShardFolder, stored: StoredFile, *, with_content: bool = True
) -> BinaryIO:
    """Open a file and check its size and, with its content, its hash against the manifest."""
    while True:
        file = folder.open(stored)
        try:
            _check(file, stored, f"{folder.location}/{stored.file}", with_content=with_content)
        except DamagedShardError:
            file.close()
            # The copy on this node may be damaged, and the next copy undamaged.
            if not folder.discard(stored):
                raise
        except BaseException:
            file.close()
            raise
        else:
            return file


def _check(file: BinaryIO, stored: StoredFile, location: str, *, with_content: bool) -> None:
    size = file.seek(0, io.SEEK_END)
    if size != stored.bytes:
        raise DamagedShardError(
            "size",
            f"shard {location} has {size} bytes where the manifest says {stored.bytes}: copy it "
            "again",
        )
    file.seek(0)
    if not with_content:
        return
    if hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest() != stored.sha256:
        raise DamagedShardError(
            "sha256",
            f"shard {location} differs from the manifest's SHA-256: it is damaged or was "
            "replaced; copy it again",
        )


def read_shard(folder: Path, shard: Shard) -> list[Sample]:
    """Read all samples of a local shard into memory.

    Args:
        folder: the manifest's folder.
        shard: the shard's entry in the manifest.

    Returns:
        the samples in the order of the file.

    Raises:
        InputError: the file is missing or differs from the manifest, or a sample cannot be used;
            the message names the file and the difference.
    """
    opened = open_shard(LocalFolder(str(folder)), shard)
    with opened.file:
        return [opened.sample(index) for index in range(shard.samples)]


class OpenShards:
    """The open shards of one data set: those being read, and the next ones."""

    def __init__(
        self,
        folder: ShardFolder,
        manifest: Manifest,
        max_open: int,
        on_wait: Callable[[str], None],
    ) -> None:
        """Open nothing yet.

        Args:
            folder: the folder of the shards.
            manifest: manifest of the data set.
            max_open: shards kept open; the least recently used ones are closed.
            on_wait: called with the shard's name before each wait for a shard, and with "" after.
        """
        self._folder = folder
        self._manifest = manifest
        self._max_open = max_open
        self._on_wait = on_wait
        self._shards: OrderedDict[int, Future[OpenShard]] = OrderedDict()
        self._threads = ThreadPoolExecutor(OPENING_THREADS, thread_name_prefix="open-shard")

    def get(self, shard_index: int) -> OpenShard:
        """Return a shard, and open it if it is closed.

        Raises:
            DamagedShardError: it is missing or differs from the manifest.
            OSError: it cannot be read.
        """
        future = self._start(shard_index)
        if not future.done():
            shard = self._manifest.shards[shard_index]
            self._on_wait(f"shard {self._folder.location}/{shard.file}")
            future.exception()
            self._on_wait("")
        return future.result()

    def open_ahead(self, shard_indices: Sequence[int]) -> None:
        """Start opening shards without waiting for them."""
        for shard_index in shard_indices:
            self._start(shard_index)

    def close(self) -> None:
        """Close every shard, after waiting for those that are being opened."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for future in self._shards.values():
            _close(future)
        self._shards.clear()

    def _start(self, shard_index: int) -> "Future[OpenShard]":
        if shard_index not in self._shards:
            self._shards[shard_index] = self._threads.submit(
                open_shard, self._folder, self._manifest.shards[shard_index]
            )
        self._shards.move_to_end(shard_index)
        while len(self._shards) > self._max_open:
            _, oldest = self._shards.popitem(last=False)
            oldest.add_done_callback(_close)
        return self._shards[shard_index]


def _close(future: "Future[OpenShard]") -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().file.close()
