"""The samples of a tar file, found for the index of its shard.

Python's `tarfile` reads the headers, so that shards of every tool can be described: GNU's long
names, ustar's prefixes and pax headers included. It reads a bounded number of bytes at once, and
this module checks the damage that it silently ignores.

Shards of manifests of version 1 have no index file: their index is made from the tar file whenever
they are opened, which takes seconds.

Source: the layout of members is WebDataset's (key, dot, extension).
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ernie_vilg.data.shards.damage import DamagedShardError
from ernie_vilg.data.shards.shard_index import (
    MAX_MEMBER_BYTES,
    RECORD_BYTES,
    SAFE_KEY,
    Problem,
    ShardIndex,
    damaged,
    index_bytes,
)
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes
from ernie_vilg.storage.shard_manifest import MAX_INDEX_BYTES, Shard, describe_file, index_path

_MAX_DETAIL_CHARACTERS = 120
_BLOCK_BYTES = 1 << 20


def describe_shard(path: Path, *, samples: int, members: tuple[str, ...]) -> Shard:
    """Write the index of a shard beside it and return the manifest's entry.

    Args:
        path: an uncompressed tar file, of this project or of another tool.
        samples: number of samples that it must hold.
        members: extensions that every sample must have.

    Raises:
        DamagedShardError: it is no tar file of regular members, or is cut.
    """
    with path.open("rb", buffering=0) as file:
        index = index_tar(file, tuple(sorted(members)), str(path))
    content = index_bytes(index)
    if len(content) > MAX_INDEX_BYTES:
        raise InputError(f"shard {path} has {len(index.keys)} samples: write smaller shards")
    write_bytes(index_path(path), content)
    return Shard(
        **asdict(describe_file(path)),
        samples=samples,
        members=tuple(sorted(members)),
        index=describe_file(index_path(path)),
    )


def index_tar(file: BinaryIO, members: tuple[str, ...], location: str) -> ShardIndex:
    """Find the samples of a tar file.

    Args:
        file: the tar file, seekable.
        members: extensions that every sample must have, sorted.
        location: its name for messages.

    Raises:
        DamagedShardError: it is no tar file of regular members, or is cut.
    """
    groups = _groups(list(_members(file, location)))
    problems = {
        place: problem
        for place, group in enumerate(groups)
        if (problem := group.problem or _member_problem(group, members)) is not None
    }
    places = {
        name: [
            (0, 0) if place in problems else group.members[name]
            for place, group in enumerate(groups)
        ]
        for name in members
    }
    return ShardIndex(
        keys=np.array([group.key for group in groups], f"S{_longest_key(groups)}"),
        records={
            name: np.array([offset // RECORD_BYTES for offset, _ in column], np.uint32)
            for name, column in places.items()
        },
        sizes={
            name: np.array([size for _, size in column], np.uint32)
            for name, column in places.items()
        },
        problems=problems,
    )


_Member = tuple[bytes, int, int]
"""Name, first byte of the content, bytes of content."""


class _Headers:
    """A file of which tarfile can read only a bounded number of bytes at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(file: BinaryIO, location: str) -> Iterator[_Member]:
    """Yield the members of a tar file, or of several archives in one file, in order."""
    end = file.seek(0, io.SEEK_END)
    for member in walk_tar(file, location):
        if not member.isdir():
            yield _checked(member, end, location)


def walk_tar(file: BinaryIO, location: str) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar file, or of several archives in one file, in order.

    Only headers are read, each of a bounded size.

    Args:
        file: the tar file, seekable.
        location: its name for messages.

    Raises:
        DamagedShardError: it is no tar file, or is cut in a header or damaged from here on. A
            member that is longer than the rest of the file is yielded.
    """
    try:
        yield from _headers(file, location)
    except (DamagedShardError, OSError, MemoryError):
        raise
    except Exception as error:  # tarfile raises errors of any kind for a damaged header
        raise _not_a_tar(location, error) from error


def _headers(file: BinaryIO, location: str) -> Iterator[tarfile.TarInfo]:
    end = file.seek(0, io.SEEK_END)
    start = _after_zeros(file, 0)
    if start == end:
        raise _not_a_tar(location, "it is empty")
    while start < end:
        file.seek(start)
        # tarfile ends silently at an unreadable header, unless it is the first.
        with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
            is_first = True
            while (member := archive.next()) is not None:
                archive.members.clear()  # it would keep them all
                is_first = False
                yield member
            if is_first and end - start < RECORD_BYTES:
                raise _cut(location, f"in a header, at byte {end}")
            if is_first:
                raise _not_a_tar(location, f"no header at byte {start}")
            start = _after_zeros(file, archive.offset)


def _checked(member: tarfile.TarInfo, end: int, location: str) -> _Member:
    name = member.name.encode("utf-8", "surrogateescape")
    shown = ascii(member.name[:_MAX_DETAIL_CHARACTERS])
    if not member.isreg() or member.issparse():
        raise damaged("member_type", location, f"has a member {shown} that is not a regular file")
    if member.size < 0:
        raise _not_a_tar(location, f"{member.size} bytes in member {shown}")
    if member.offset_data + member.size > end:
        raise _cut(location, f"in member {shown}, at byte {end}")
    return name.removeprefix(b"./"), member.offset_data, member.size


def _after_zeros(file: BinaryIO, start: int) -> int:
    """Return the next record that is not all zeros, or the file's end."""
    file.seek(start)
    while block := file.read(_BLOCK_BYTES):
        if rest := block.lstrip(b"\0"):
            zeros = len(block) - len(rest)
            return start + zeros // RECORD_BYTES * RECORD_BYTES
        start += len(block)
    return start


@dataclass(kw_only=True)
class _Group:
    """The members of one sample found so far."""

    key: bytes
    members: dict[str, tuple[int, int]]
    """First byte of the content and bytes of content by extension."""
    last: int
    """Number of the sample's last member in the file."""
    problem: Problem | None = None


def _groups(members: list[_Member]) -> list[_Group]:
    """Group members by key, in whatever order they are.

    A sample is the members of one key. A repeated member begins another sample of the same key,
    which is a duplicate.
    """
    groups: list[_Group] = []
    newest: dict[bytes, _Group] = {}
    for number, (name, offset, size) in enumerate(members):
        folder, slash, base = name.rpartition(b"/")
        stem, _, extension_bytes = base.partition(b".")
        key, extension = folder + slash + stem, extension_bytes.decode("utf-8", "replace")
        group = newest.get(key)
        if group is None or extension in group.members:
            is_duplicate = group is not None
            group = newest[key] = _Group(key=key, members={}, last=number)
            groups.append(group)
            if is_duplicate:
                group.problem = Problem(
                    reason="duplicate_key", detail="its key occurs twice in the shard"
                )
        elif group.last != number - 1 and group.problem is None:
            group.problem = Problem(
                reason="not_adjacent", detail="members of another sample stand between its own"
            )
        group.members[extension], group.last = (offset, size), number
    return groups


def _longest_key(groups: list[_Group]) -> int:
    """Return the bytes kept of each key; an illegal long key is cut, for messages only."""
    return max([1, *(min(len(group.key), 128) for group in groups)])


def _member_problem(group: _Group, members: tuple[str, ...]) -> Problem | None:
    if not SAFE_KEY.fullmatch(group.key):
        detail = "its key is not 1 to 128 letters, digits, '-', '_' and '/'"
        return Problem(reason="key", detail=detail)
    if set(group.members) != set(members):
        found = f"{sorted(group.members)}"[:_MAX_DETAIL_CHARACTERS]
        detail = f"it has members {found} where the manifest says {list(members)}"
        return Problem(reason="members", detail=detail)
    for name, (_, size) in group.members.items():
        if size > MAX_MEMBER_BYTES:
            detail = f"its {name} has {size} bytes where {MAX_MEMBER_BYTES} are allowed"
            return Problem(reason="member_size", detail=detail)
    return None


def _not_a_tar(location: str, why: object) -> DamagedShardError:
    text = ascii(str(why))[1:-1][:_MAX_DETAIL_CHARACTERS]
    return damaged("not_a_tar", location, f"is no uncompressed tar file ({text})")


def _cut(location: str, where: str) -> DamagedShardError:
    return damaged("cut", location, f"is cut: it ends {where}")
