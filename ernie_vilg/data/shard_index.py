"""What lies where in a tar file, found in the one pass that also checks every byte of it.

A shard is read front to back once: its size and SHA-256 are compared with the manifest, and the
header of every member is noted. From then on a sample is a few offsets, and is read by them from
the page cache, which the pass has filled. What is kept per sample is tens of bytes, whatever the
size of its members.

A file that differs from the manifest is damaged as a whole. In a file that is as the manifest says
a single sample may still be unusable (written so): it keeps its index, with the reason.

Source: ours; the layout of members is WebDataset's (key, dot, extension), the headers are POSIX
ustar's.
"""

import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ernie_vilg.data.damage import DamagedShardError
from ernie_vilg.manifest import Shard

MAX_MEMBER_BYTES = 20 << 20
"""A larger member makes its sample unusable, unread."""

RECORD_BYTES = 512
"""Of a tar file, in whole multiples of which everything begins."""

_BLOCK_BYTES = 1 << 20
_NOT_A_TAR = "it is no uncompressed tar file, build the shards again"
_NAME_BYTES = 100
_MAGIC = b"ustar"
_MAGIC_PLACES = slice(257, 262)
_SIZE_PLACES = slice(124, 135)
_OCTAL_PLACES = 8 ** np.arange(10, -1, -1)
_TYPE_PLACE = 156
_IS_REGULAR_TYPE = np.isin(np.arange(256), list(b"0\0"))
_IS_EXTENSION_TYPE = np.isin(np.arange(256), list(b"xg"))
_EXTENSIONS_THAT_MATTER = (b" path=", b" size=", b" linkpath=", b" GNU.sparse")
_SAFE_KEY = re.compile(rb"[A-Za-z0-9_-]{1,128}")
_SAFE_CHARACTERS = np.array(
    [character for character in range(256) if _SAFE_KEY.fullmatch(bytes([character]))], np.uint8
)


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
    """Of the samples in the order of the file, bytes [samples]."""
    records: Mapping[str, np.ndarray]
    """Where each sample's member begins by extension, in units of 512 bytes, uint32 [samples]."""
    sizes: Mapping[str, np.ndarray]
    """Bytes of each sample's member by extension, uint32 [samples]; 0 where it has a problem."""
    problems: Mapping[int, Problem]
    """Samples that cannot be used, by their index."""


@dataclass(frozen=True, kw_only=True)
class _Members:
    """The headers of a tar file, in the order of the file."""

    names: np.ndarray
    """Padded with zeros, uint8 [members, 100]."""
    offsets: np.ndarray
    """First byte of the content, int64 [members]."""
    sizes: np.ndarray
    """Bytes of content, int64 [members]."""
    is_extension: np.ndarray
    """Whether it is a pax header, which says more of the member after it, bool [members]."""

    def name(self, member: int) -> bytes:
        """Return one name."""
        return self.names[member].tobytes().rstrip(b"\0")


def index_shard(file: BinaryIO, shard: Shard, location: str) -> ShardIndex:
    """Check a shard's bytes against the manifest and find its samples.

    Args:
        file: the shard, unbuffered, at its start.
        shard: its entry in the manifest.
        location: its name for messages.

    Raises:
        DamagedShardError: the file differs from the manifest in size, content or number of
            samples, or is no tar file of regular members.
    """
    file.seek(0, io.SEEK_END)
    if file.tell() != shard.bytes:
        raise DamagedShardError(
            "size",
            f"shard {location} has {file.tell()} bytes where the manifest says {shard.bytes}: "
            "copy it again",
        )
    file.seek(0)
    walk = _HeaderWalk(location)
    digest = hashlib.sha256()
    # A multiple of a record, so that no header lies across two blocks.
    block = bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    while count := _read_full(file, view):
        digest.update(view[:count])
        walk.feed(block, count)
    if digest.hexdigest() != shard.sha256:
        raise DamagedShardError(
            "sha256",
            f"shard {location} differs from the manifest's SHA-256: it is damaged or was "
            "replaced; copy it again",
        )
    # Only now: a damaged file's own story of what is wrong with it is worth nothing.
    members = _without_extensions(walk.finished(), file, location)
    return _group(members, shard, location)


def _without_extensions(members: _Members, file: BinaryIO, location: str) -> _Members:
    """Return the members proper of a file with pax headers.

    WebDataset's writer leaves the time in them to a fraction of a second, which is of no interest.
    """
    if not members.is_extension.any():
        return members
    for offset, size in zip(
        members.offsets[members.is_extension].tolist(),
        members.sizes[members.is_extension].tolist(),
        strict=True,
    ):
        content = os.pread(file.fileno(), min(size, _BLOCK_BYTES), offset)
        if any(name in content for name in _EXTENSIONS_THAT_MATTER):
            raise DamagedShardError(
                "member_type",
                f"shard {location}: a member has a name of over {_NAME_BYTES} bytes, or is sparse "
                "or over 8 GB: write it with a shorter key",
            )
    kept = ~members.is_extension
    return _Members(
        names=members.names[kept],
        offsets=members.offsets[kept],
        sizes=members.sizes[kept],
        is_extension=members.is_extension[kept],
    )


def _read_full(file: BinaryIO, view: memoryview) -> int:
    """Fill the view as far as the file goes; a raw file may return less than it was asked for."""
    count = 0
    while count < len(view) and (read := file.readinto(view[count:])):  # type: ignore[attr-defined]
        count += read
    return count


class _HeaderWalk:
    """Notes the members of a tar file that is given block by block."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._names: list[np.ndarray] = []
        self._is_extension: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._next_header = 0
        self._passed = 0
        self._problem: DamagedShardError | None = None

    def feed(self, block: bytearray, count: int) -> None:
        """Take the next `count` bytes of the file."""
        if self._problem is None:
            records = np.frombuffer(block, np.uint8).reshape(-1, RECORD_BYTES)
            first = (self._next_header - self._passed) // RECORD_BYTES
            plain, sizes = _plain_headers(records[: count // RECORD_BYTES], first)
            if len(plain):
                self._next_header = self._passed + int(_end(plain[-1], sizes[-1])) * RECORD_BYTES
            others, other_sizes = self._walk(block, count)
            self._note(records, np.concatenate([plain, others]))
            self._sizes += [sizes, other_sizes]
        self._passed += count

    def finished(self) -> _Members:
        """Return the members.

        Raises:
            DamagedShardError: the file is no tar file of regular members.
        """
        if self._problem is not None:
            raise self._problem
        empty = np.empty(0, np.int64)
        return _Members(
            names=np.concatenate([np.empty((0, _NAME_BYTES), np.uint8), *self._names]),
            offsets=np.concatenate([empty, *self._starts]) + RECORD_BYTES,
            sizes=np.concatenate([empty, *self._sizes]),
            is_extension=np.concatenate([np.empty(0, bool), *self._is_extension]),
        )

    def _walk(self, block: bytearray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Step from header to header; return records in the block and sizes, int64 [headers]."""
        passed, following = self._passed, self._next_header
        end = passed + count
        found, sizes = [], []
        while following < end:
            start = following - passed
            if block[start] == 0:  # the zeros at the end of an archive
                following += RECORD_BYTES
                continue
            try:
                size = int(block[start + 124 : start + 135], 8)
            except ValueError:
                size = -1
            if size < 0:
                self._fail("not_a_tar", _NOT_A_TAR)
                break
            found.append(start // RECORD_BYTES)
            sizes.append(size)
            following = passed + _end(found[-1], size) * RECORD_BYTES
        self._next_header = following
        return np.array(found, np.int64), np.array(sizes, np.int64)

    def _note(self, records: np.ndarray, places: np.ndarray) -> None:
        """Keep the names of headers and check what they are headers of."""
        headers = records[places]
        names = headers[:, :_NAME_BYTES].copy()
        self._names.append(names)
        self._starts.append(self._passed + places * RECORD_BYTES)
        if not _are_magic(headers[:, _MAGIC_PLACES]).all():
            self._fail("not_a_tar", _NOT_A_TAR)
            return
        types = headers[:, _TYPE_PLACE]
        is_extension = _IS_EXTENSION_TYPE[types]
        self._is_extension.append(is_extension)
        is_known = is_extension | _IS_REGULAR_TYPE[types]
        if not is_known.all():
            name = names[np.argmin(is_known)].tobytes().rstrip(b"\0")
            shown = ascii(name.decode("utf-8", "replace"))
            self._fail("member_type", f"member {shown} is not a regular file")

    def _fail(self, reason: str, what: str) -> None:
        self._problem = DamagedShardError(reason, f"shard {self._location}: {what}")


def _end(place: Any, size: Any) -> Any:
    """Return the record after a member, from its header's record and its size."""
    return place + 1 + (size + RECORD_BYTES - 1) // RECORD_BYTES


def _are_magic(places: np.ndarray) -> np.ndarray:
    """Return which rows, uint8 [headers, 5], are the format's name, bool [headers]."""
    return np.ascontiguousarray(places).view(f"S{len(_MAGIC)}")[:, 0] == _MAGIC


def _plain_headers(records: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Find headers all at once, as far as nothing is odd.

    What looks like a header is one where the member before it ends just there, and so on from the
    first. Content that looks like a header breaks that chain, and so does an odd header; from there
    on the walk goes on alone.

    Args:
        records: uint8 [records, 512].
        first: record of the first header, which may lie behind all of these.

    Returns:
        records of headers and sizes of their members, int64 [headers].
    """
    likely = np.flatnonzero(records[:, _MAGIC_PLACES.start] == _MAGIC[0])
    likely = likely[likely >= first]
    likely = likely[_are_magic(records[likely, _MAGIC_PLACES])]
    headers = records[likely]
    digits = headers[:, _SIZE_PLACES] - ord("0")  # what is below wraps to over 7
    sizes = digits @ _OCTAL_PLACES
    starts = np.concatenate([[first], _end(likely, sizes)[:-1]])
    is_plain = (likely == starts) & (digits < 8).all(axis=1) & (headers[:, 0] != 0)
    count = len(likely) if is_plain.all() else int(np.argmin(is_plain))
    return likely[:count], sizes[:count]


def _group(members: _Members, shard: Shard, location: str) -> ShardIndex:
    index = _group_regular(members, shard) or _group_any(members, shard)
    if len(index.keys) != shard.samples:
        raise DamagedShardError(
            "samples",
            f"shard {location} holds {len(index.keys)} samples where the manifest says "
            f"{shard.samples}: build the shards again",
        )
    return index


def _group_regular(members: _Members, shard: Shard) -> ShardIndex | None:
    """Put members together where all samples are alike, None where they are not.

    Every sample then has the same members in the same order under a key of the same length,
    which a few comparisons of whole arrays can tell.
    """
    width = len(shard.members)
    if not len(members.sizes) or len(members.sizes) % width:
        return None
    names = members.names.reshape(-1, width, _NAME_BYTES)
    key_length = members.name(0).find(b".")
    extensions = [members.name(member)[key_length + 1 :] for member in range(width)]
    keys, suffixes = names[..., :key_length], names[..., key_length:]
    is_alike = (
        sorted(extension.decode("utf-8", "replace") for extension in extensions)
        == sorted(shard.members)
        and bool((suffixes == suffixes[0]).all())
        and bool((keys == keys[:, :1]).all())
        and _is_safe(keys[:, 0])
        and int(members.sizes.max()) <= MAX_MEMBER_BYTES
    )
    if not is_alike:
        return None
    unique = keys[:, 0].copy().view(f"S{key_length}")[:, 0]
    if len(np.unique(unique)) != len(unique):
        return None
    columns = {extension.decode(): column for column, extension in enumerate(extensions)}
    records = (members.offsets // RECORD_BYTES).reshape(-1, width)
    sizes = members.sizes.reshape(-1, width)
    return ShardIndex(
        keys=unique,
        records={name: records[:, columns[name]].astype(np.uint32) for name in shard.members},
        sizes={name: sizes[:, columns[name]].astype(np.uint32) for name in shard.members},
        problems={},
    )


def _is_safe(keys: np.ndarray) -> bool:
    """Return whether keys, uint8 [samples, length], are of safe characters alone."""
    return keys.shape[1] > 0 and bool(np.isin(keys, _SAFE_CHARACTERS).all())


@dataclass(kw_only=True)
class _Group:
    """A sample being put together."""

    key: bytes
    members: dict[str, int]
    """Number of the header by extension."""
    problem: Problem | None = None


def _group_any(members: _Members, shard: Shard) -> ShardIndex:
    """Put members together one by one, and say what is wrong with each sample."""
    groups = _groups(members)
    problems = {
        index: problem
        for index, group in enumerate(groups)
        if (problem := group.problem or _member_problem(group, members, shard)) is not None
    }

    def gathered(values: np.ndarray, name: str) -> np.ndarray:
        return np.array(
            [
                0 if index in problems else values[group.members[name]]
                for index, group in enumerate(groups)
            ],
            np.uint32,
        )

    return ShardIndex(
        keys=np.array([group.key for group in groups]),
        records={name: gathered(members.offsets // RECORD_BYTES, name) for name in shard.members},
        sizes={name: gathered(members.sizes, name) for name in shard.members},
        problems=problems,
    )


def _groups(members: _Members) -> list[_Group]:
    """Put members together by key, so that each sample is met once, whatever the order.

    A sample is one key's members. A member that its sample has already begins another of the same
    key, which is a duplicate.
    """
    groups: list[_Group] = []
    newest: dict[bytes, _Group] = {}
    for member in range(len(members.sizes)):
        key, _, extension_bytes = members.name(member).partition(b".")
        extension = extension_bytes.decode("utf-8", "replace")
        group = newest.get(key)
        if group is None or extension in group.members:
            is_duplicate = group is not None
            group = newest[key] = _Group(key=key, members={})
            groups.append(group)
            if is_duplicate:
                group.problem = Problem(
                    reason="duplicate_key", detail="its key occurs twice in the shard"
                )
        elif max(group.members.values()) != member - 1 and group.problem is None:
            group.problem = Problem(
                reason="not_adjacent", detail="members of another sample stand between its own"
            )
        group.members[extension] = member
    return groups


def _member_problem(group: _Group, members: _Members, shard: Shard) -> Problem | None:
    if not _SAFE_KEY.fullmatch(group.key):
        return Problem(reason="key", detail="its key is not 1 to 128 letters, digits, '-' and '_'")
    if set(group.members) != set(shard.members):
        return Problem(
            reason="members",
            detail=f"it has members {sorted(group.members)} where the manifest says "
            f"{list(shard.members)}",
        )
    for name, member in group.members.items():
        if members.sizes[member] > MAX_MEMBER_BYTES:
            return Problem(
                reason="member_size",
                detail=f"its {name} has {members.sizes[member]} bytes where {MAX_MEMBER_BYTES} "
                "are allowed",
            )
    return None
