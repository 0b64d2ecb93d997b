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
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ernie_vilg.data.damage import DamagedShardError
from ernie_vilg.data.tar_headers import (
    NAME_BYTES,
    RECORD_BYTES,
    HeaderWalk,
    Members,
    without_extensions,
)
from ernie_vilg.manifest import Shard

MAX_MEMBER_BYTES = 20 << 20
"""A larger member makes its sample unusable, unread."""

_BLOCK_BYTES = 1 << 20
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
    walk = HeaderWalk(location)
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
    members = without_extensions(walk.finished(), file, location)
    return _group(members, shard, location)


def _read_full(file: BinaryIO, view: memoryview) -> int:
    """Fill the view as far as the file goes; a raw file may return less than it was asked for."""
    count = 0
    while count < len(view) and (read := file.readinto(view[count:])):  # type: ignore[attr-defined]
        count += read
    return count


def _group(members: Members, shard: Shard, location: str) -> ShardIndex:
    index = _group_regular(members, shard) or _group_any(members, shard)
    if len(index.keys) != shard.samples:
        raise DamagedShardError(
            "samples",
            f"shard {location} holds {len(index.keys)} samples where the manifest says "
            f"{shard.samples}: build the shards again",
        )
    return index


def _group_regular(members: Members, shard: Shard) -> ShardIndex | None:
    """Put members together where all samples are alike, None where they are not.

    Every sample then has the same members in the same order under a key of the same length,
    which a few comparisons of whole arrays can tell.
    """
    width = len(shard.members)
    if not len(members.sizes) or len(members.sizes) % width:
        return None
    names = members.names.reshape(-1, width, NAME_BYTES)
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


def _group_any(members: Members, shard: Shard) -> ShardIndex:
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


def _groups(members: Members) -> list[_Group]:
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


def _member_problem(group: _Group, members: Members, shard: Shard) -> Problem | None:
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
