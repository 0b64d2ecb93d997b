"""The index of a shard: made once from its tar file, written beside it, read with it.

The index of a shard is made when the shard is described for its manifest, which holds the index's
hash. A reader then knows without looking at a header where each sample's members are. It keeps tens
of bytes per sample, whatever the size of its members. Shards of manifests of version 1 have no file
of their index: it is made from the tar file whenever they are opened, which takes seconds.

Python's `tarfile` reads the headers, so that shards of every tool can be described: GNU's long
names, ustar's prefixes and pax headers included. It may read little at once, and this module checks
what it passes over silently.

A single sample of a shard may be unusable (written so): it keeps its place, with the reason.

The file: one line of JSON, then the keys, all of one length, then for each member the records
where it begins and its sizes, little-endian uint32.

Source: ours; the layout of members is WebDataset's (key, dot, extension).
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ernie_vilg.data.shards.damage import DamagedShardError
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes
from ernie_vilg.storage.json_files import object_of, parse_json
from ernie_vilg.storage.shard_manifest import MAX_INDEX_BYTES, Shard, describe_file, index_path

RECORD_BYTES = 512
"""Unit of a tar file: every header and every content begins at a multiple of it."""
MAX_MEMBER_BYTES = 20 << 20
"""A larger member makes its sample unusable, unread."""
SAFE_KEY = re.compile(rb"(?!/)[A-Za-z0-9_/-]{1,128}")
"""Keys that are taken; a key may stand in folders, as in "train/00000001"."""

_MAX_DETAIL_CHARACTERS = 120
_BLOCK_BYTES = 1 << 20
_SAFE_CHARACTERS = np.array(
    [code for code in range(256) if code == 0 or SAFE_KEY.fullmatch(b"a" + bytes([code]))], np.uint8
)
_BUILD_AGAIN = "build the shards again"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a sample of an undamaged shard cannot be used."""

    reason: str
    """One word, for counting."""
    detail: str
    """What was found, for people."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where each sample's members are."""

    keys: np.ndarray
    """Keys of the samples in the order of the file, bytes [samples]."""
    records: Mapping[str, np.ndarray]
    """Where each sample's member begins by extension, in units of 512 bytes, uint32 [samples]."""
    sizes: Mapping[str, np.ndarray]
    """Bytes of each sample's member by extension, uint32 [samples]; 0 where it has a problem."""
    problems: Mapping[int, Problem]
    """Samples that cannot be used, by their index."""


def describe_shard(path: Path, *, samples: int, members: tuple[str, ...]) -> Shard:
    """Write the index of a shard beside it and return the manifest's entry.

    Args:
        path: an uncompressed tar file, of this project or of another tool.
        samples: how many samples it must hold.
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


def index_bytes(index: ShardIndex) -> bytes:
    """Return the content of an index's file."""
    problems = {str(at): [problem.reason, problem.detail] for at, problem in index.problems.items()}
    head = {
        "samples": len(index.keys),
        "key_bytes": index.keys.dtype.itemsize,
        "members": list(index.records),
        "problems": problems,
    }
    columns = np.array([(index.records[name], index.sizes[name]) for name in index.records], "<u4")
    return json.dumps(head).encode() + b"\n" + index.keys.tobytes() + columns.tobytes()


def parse_index(content: bytes, shard: Shard, location: str) -> ShardIndex:
    """Return the index that a file holds.

    Args:
        content: of the file.
        shard: the shard it belongs to.
        location: the shard's name for messages.

    Raises:
        DamagedShardError: it is no index of this shard.
    """
    line, _, rest = content.partition(b"\n")
    try:
        head = object_of(parse_json(line, f"the index of shard {location}"), "its first line")
    except InputError as error:
        raise DamagedShardError("index", str(error)) from error
    samples, width, members = head.get("samples"), head.get("key_bytes"), head.get("members")
    check_samples(samples, shard, location)
    if members != list(shard.members):
        raise _damaged(
            "index", location, f"has members {members!r:.80}, the manifest says {shard.members}"
        )
    problems = _problems_of(head.get("problems"), shard.samples)
    expected = shard.samples * (width + 8 * len(members)) if type(width) is int else -1
    if problems is None or not isinstance(width, int) or width < 1 or len(rest) != expected:
        raise _damaged("index", location, "has an index that is none")
    keys = np.frombuffer(rest, f"S{width}", shard.samples)
    columns = np.frombuffer(rest, "<u4", offset=shard.samples * width)
    columns = columns.astype(np.uint32).reshape(len(members), 2, shard.samples)
    index = ShardIndex(
        keys=keys,
        records={name: columns[place, 0] for place, name in enumerate(members)},
        sizes={name: columns[place, 1] for place, name in enumerate(members)},
        problems=problems,
    )
    ends = columns[:, 0].astype(np.int64) * RECORD_BYTES + columns[:, 1]
    is_sound = columns[:, 1].max() <= MAX_MEMBER_BYTES and ends.max() <= shard.bytes
    if not is_sound or not _are_safe(index):
        raise _damaged("index", location, "has an index of other keys or sizes than are read")
    return index


def check_samples(found: Any, shard: Shard, location: str) -> None:
    """Raise a DamagedShardError where a shard has another number of samples than it must."""
    if found != shard.samples:
        what = f"holds {found!r:.40} samples where the manifest says {shard.samples}"
        raise _damaged("samples", location, what)


def _problems_of(entries: Any, samples: int) -> dict[int, Problem] | None:
    """Return the problems that an index's first line lists, None where it lists none."""
    if not isinstance(entries, dict):
        return None
    problems = {}
    for at, entry in entries.items():
        is_text = isinstance(entry, list) and all(isinstance(part, str) for part in entry)
        is_place = re.fullmatch(r"[0-9]{1,12}", at) is not None and int(at) < samples
        if not is_text or not is_place or len(entry) != 2:
            return None
        problems[int(at)] = Problem(reason=entry[0], detail=entry[1])
    return problems


def _are_safe(index: ShardIndex) -> bool:
    """Return whether the keys of all usable samples are different and of safe characters."""
    usable = np.ones(len(index.keys), bool)
    usable[list(index.problems)] = False
    keys = index.keys[usable]
    codes = keys.view(np.uint8).reshape(len(keys), keys.itemsize)
    is_end = codes == 0
    return (
        len(np.unique(keys)) == len(keys)
        and bool(np.isin(codes, _SAFE_CHARACTERS).all())
        and not is_end[:, 0].any()
        and not (codes[:, 0] == ord("/")).any()
        and bool((is_end[:, :-1] <= is_end[:, 1:]).all())
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
    found: list[_Member] = []
    try:
        found.extend(_members(file, location))
    except (DamagedShardError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever tarfile makes of a damaged header
        raise _not_a_tar(location, error) from error
    groups = _groups(found)
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
    """A file as tarfile may read it: never much at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(file: BinaryIO, location: str) -> Iterator[_Member]:
    """Yield the members of a tar file, or of several in one file, in order."""
    end = file.seek(0, io.SEEK_END)
    start = _after_zeros(file, 0)
    if start == end:
        raise _not_a_tar(location, "it is empty")
    while start < end:
        file.seek(start)
        # tarfile ends silently at a header that it cannot read, unless it is the first.
        with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
            is_first = True
            while (member := archive.next()) is not None:
                archive.members.clear()  # it would keep them all
                is_first = False
                if not member.isdir():
                    yield _checked(member, end, location)
            if is_first and end - start < RECORD_BYTES:
                raise _cut(location, f"in a header, at byte {end}")
            if is_first:
                raise _not_a_tar(location, f"no header at byte {start}")
            start = _after_zeros(file, archive.offset)


def _checked(member: tarfile.TarInfo, end: int, location: str) -> _Member:
    name = member.name.encode("utf-8", "surrogateescape")
    shown = ascii(member.name[:_MAX_DETAIL_CHARACTERS])
    if not member.isreg() or member.issparse():
        raise _damaged("member_type", location, f"has a member {shown} that is not a regular file")
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
    """A sample being put together."""

    key: bytes
    members: dict[str, tuple[int, int]]
    """First byte of the content and bytes of content by extension."""
    last: int
    """Number of its last member in the file."""
    problem: Problem | None = None


def _groups(members: list[_Member]) -> list[_Group]:
    """Put members together by key, so that each sample is met once, whatever the order.

    A sample is one key's members. A member that its sample has already begins another of the same
    key, which is a duplicate.
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
    """Return the bytes kept of each key: those of a key that is too long are only for messages."""
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
    return _damaged("not_a_tar", location, f"is no uncompressed tar file ({text})")


def _cut(location: str, where: str) -> DamagedShardError:
    return _damaged("cut", location, f"is cut: it ends {where}")


def _damaged(reason: str, location: str, what: str) -> DamagedShardError:
    return DamagedShardError(reason, f"shard {location} {what}: {_BUILD_AGAIN}")
