"""The headers of a tar file that is given block by block.

Plain headers, one after another, are found all at once by comparisons of whole arrays; from
anything odd on, a walk from header to header goes on alone. Pax headers are passed over where they
say nothing that matters.

Source: ours; the format is POSIX ustar's.
"""

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ernie_vilg.data.damage import DamagedShardError

RECORD_BYTES = 512
"""Of a tar file, in whole multiples of which everything begins."""

_NOT_A_TAR = "it is no uncompressed tar file, build the shards again"
NAME_BYTES = 100
"""Longest name in a header."""

_MAGIC = b"ustar"
_MAGIC_PLACES = slice(257, 262)
_SIZE_PLACES = slice(124, 135)
_OCTAL_PLACES = 8 ** np.arange(10, -1, -1)
_TYPE_PLACE = 156
_IS_REGULAR_TYPE = np.isin(np.arange(256), list(b"0\0"))
_IS_EXTENSION_TYPE = np.isin(np.arange(256), list(b"xg"))
_MOST_EXTENSION_BYTES = 1 << 20
_EXTENSIONS_THAT_MATTER = (b" path=", b" size=", b" linkpath=", b" GNU.sparse")


@dataclass(frozen=True, kw_only=True)
class Members:
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


class HeaderWalk:
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

    def finished(self) -> Members:
        """Return the members.

        Raises:
            DamagedShardError: the file is no tar file of regular members.
        """
        if self._problem is not None:
            raise self._problem
        empty = np.empty(0, np.int64)
        return Members(
            names=np.concatenate([np.empty((0, NAME_BYTES), np.uint8), *self._names]),
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
        names = headers[:, :NAME_BYTES].copy()
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


def without_extensions(members: Members, file: BinaryIO, location: str) -> Members:
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
        content = os.pread(file.fileno(), min(size, _MOST_EXTENSION_BYTES), offset)
        if any(name in content for name in _EXTENSIONS_THAT_MATTER):
            raise DamagedShardError(
                "member_type",
                f"shard {location}: a member has a name of over {NAME_BYTES} bytes, or is sparse "
                "or over 8 GB: write it with a shorter key",
            )
    kept = ~members.is_extension
    return Members(
        names=members.names[kept],
        offsets=members.offsets[kept],
        sizes=members.sizes[kept],
        is_extension=members.is_extension[kept],
    )
