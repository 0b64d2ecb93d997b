"""The index of a shard: where each sample's members are in its tar file.

The index is written beside the shard when the shard is described for its manifest
(`data.shards.tar_index`), which holds the index's hash. A reader then needs no header of the tar
file. The index keeps tens of bytes per sample, whatever the size of its members.

An unusable sample of a shard keeps its place in the index, with the reason.

The file: one line of JSON, then the keys, all of one length, then for each member the records
where it begins and its sizes, little-endian uint32.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_vilg.data.shards.damage import DamagedShardError
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import object_of, parse_json
from ernie_vilg.storage.shard_manifest import Shard

RECORD_BYTES = 512
"""Unit of a tar file: every header and every content begins at a multiple of it."""
MAX_MEMBER_BYTES = 20 << 20
"""Largest member; a larger one makes its sample unusable, unread."""
SAFE_KEY = re.compile(rb"(?!/)[A-Za-z0-9_/-]{1,128}")
"""Legal keys; a key may contain folders, as in "train/00000001"."""

_SAFE_CHARACTERS = np.array(
    [code for code in range(256) if code == 0 or SAFE_KEY.fullmatch(b"a" + bytes([code]))], np.uint8
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The reason why a sample of an undamaged shard cannot be used."""

    reason: str
    """One word, for counting."""
    detail: str
    """Description for people."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The places of all members of a shard."""

    keys: np.ndarray
    """Keys of the samples in the order of the file, bytes [samples]."""
    records: Mapping[str, np.ndarray]
    """First record of each sample's member by extension, in units of 512 bytes, uint32
    [samples]."""
    sizes: Mapping[str, np.ndarray]
    """Bytes of each sample's member by extension, uint32 [samples]; 0 for a sample with a
    problem."""
    problems: Mapping[int, Problem]
    """Problems of the unusable samples, by their index."""


def index_bytes(index: ShardIndex) -> bytes:
    """Return the content of the file of an index."""
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
    """Return the index in a file.

    Args:
        content: content of the file.
        shard: the shard's entry in the manifest.
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
        raise damaged(
            "index", location, f"has members {members!r:.80}, the manifest says {shard.members}"
        )
    problems = _problems_of(head.get("problems"), shard.samples)
    expected = shard.samples * (width + 8 * len(members)) if type(width) is int else -1
    if problems is None or not isinstance(width, int) or width < 1 or len(rest) != expected:
        raise damaged("index", location, "has a malformed index")
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
        raise damaged("index", location, "has an index with illegal keys or sizes")
    return index


def check_samples(found: Any, shard: Shard, location: str) -> None:
    """Raise a DamagedShardError if the number of samples differs from the manifest's."""
    if found != shard.samples:
        what = f"holds {found!r:.40} samples where the manifest says {shard.samples}"
        raise damaged("samples", location, what)


def _problems_of(entries: Any, samples: int) -> dict[int, Problem] | None:
    """Return the problems in an index's first line; None if the line is malformed."""
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
    """Return whether the keys of all usable samples are legal, and all different."""
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


def damaged(reason: str, location: str, what: str) -> DamagedShardError:
    """Return the error about a shard that must be built again."""
    return DamagedShardError(reason, f"shard {location} {what}: build the shards again")
