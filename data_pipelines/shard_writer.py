"""Writing of samples to tar files, with the same bytes for the same samples.

Source: the layout of members is WebDataset's (https://github.com/webdataset/webdataset).
"""

import hashlib
import os
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.data.shards.shard_index import (
    MAX_MEMBER_BYTES,
    SAFE_KEY,
    ShardIndex,
    index_bytes,
)
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes, writing_path
from ernie_vilg.storage.shard_manifest import Shard, describe_file, index_path

_OWNER = "ernie_vilg"


def shard_name(prefix: str, index: int) -> str:
    """Return a shard's file name, such as "images-00000.tar"."""
    return f"{prefix}-{index:05d}.tar"


def write_shard(path: Path, samples: Iterable[Sample], *, members: tuple[str, ...]) -> Shard | None:
    """Write samples as one tar file, whole or not at all, and its index beside it.

    Owner, mode and time of every member are fixed, so the file depends only on the samples.

    Args:
        path: file to write.
        samples: samples with a key of their own and exactly these members.
        members: extensions, such as ("json", "png", "txt").

    Returns:
        the manifest's entry, or None, without a file, if there is no sample.

    Raises:
        InputError: a member is larger than readers accept.
    """
    temporary = writing_path(path)
    with temporary.open("wb") as file:
        tar = _Tar(file, tuple(sorted(members)))
        for sample in samples:
            tar.write(sample)
        tar.end()
        file.flush()
        os.fsync(file.fileno())
    if not tar.keys:
        temporary.unlink()
        return None
    index = index_bytes(tar.index())
    write_bytes(index_path(path), index, is_only_writer=True)
    temporary.replace(path)
    return Shard(
        file=path.name,
        bytes=tar.size,
        sha256=tar.digest.hexdigest(),
        samples=len(tar.keys),
        members=tar.members,
        index=describe_file(index_path(path)),
    )


class _Tar:
    """A tar file while it is written: its hash, and where everything is."""

    def __init__(self, file: BinaryIO, members: tuple[str, ...]) -> None:
        """Write to an empty file.

        Args:
            file: the file.
            members: extensions, sorted.
        """
        self._file = file
        self.members = members
        self.keys: dict[bytes, None] = {}
        """Keys of the samples in order."""
        self.size = 0
        self.digest = hashlib.sha256()
        self._records: list[int] = []
        self._sizes: list[int] = []

    def write(self, sample: Sample) -> None:
        """Write a sample."""
        key = sample[KEY]
        assert SAFE_KEY.fullmatch(key), key
        assert key not in self.keys, key
        assert sample.keys() == {KEY, *self.members}, sorted(sample)
        parts = []
        for member in self.members:
            name, content = f"{key.decode()}.{member}", sample[member]
            if len(content) > MAX_MEMBER_BYTES:
                raise InputError(
                    f"{name} has {len(content):,} bytes, at most {MAX_MEMBER_BYTES:,} are read: "
                    "set a smaller image_size, or image_format=jpeg"
                )
            header = _header(name, len(content))
            parts += [header, content, bytes(-len(content) % tarfile.BLOCKSIZE)]
            self._records.append((self.size + len(header)) // tarfile.BLOCKSIZE)
            self._sizes.append(len(content))
            self.size += sum(map(len, parts[-3:]))
        self.keys[key] = None
        self._append(b"".join(parts))

    def end(self) -> None:
        """Write the end of the archive: two empty records, and more to fill the last block."""
        end = bytes(2 * tarfile.BLOCKSIZE)
        end += bytes(-(self.size + len(end)) % tarfile.RECORDSIZE)
        self.size += len(end)
        self._append(end)

    def index(self) -> ShardIndex:
        """Return the index of the samples."""
        shape = (len(self.keys), len(self.members))
        records = np.array(self._records, np.uint32).reshape(shape)
        sizes = np.array(self._sizes, np.uint32).reshape(shape)
        return ShardIndex(
            keys=np.array(list(self.keys)),
            records={name: records[:, place] for place, name in enumerate(self.members)},
            sizes={name: sizes[:, place] for place, name in enumerate(self.members)},
            problems={},
        )

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)


def _header(name: str, size: int) -> bytes:
    """Return the header of a member, as tarfile writes it.

    Source: the ustar format of POSIX.1-2017 (pax, "ustar Interchange Format").
    """
    if len(name) > tarfile.LENGTH_NAME:
        return _member(name, size).tobuf(tarfile.PAX_FORMAT)
    header = bytearray(_empty_header())  # tarfile takes longer than all other writing of a sample
    encoded, digits = name.encode(), b"%011o\0" % size
    header[: len(encoded)] = encoded
    header[124:136] = digits
    header[148:156] = b"%06o\0 " % (_sum_of_the_rest() + sum(encoded) + sum(digits))
    return bytes(header)


@cache
def _empty_header() -> bytes:
    return _member("", 0).tobuf(tarfile.PAX_FORMAT)


@cache
def _sum_of_the_rest() -> int:
    """Return the sum of a header's bytes without name and size, and with spaces as checksum."""
    header = bytearray(_empty_header())
    header[124:136] = bytes(12)
    header[148:156] = b" " * 8
    return sum(header)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    member.uname = member.gname = _OWNER
    return member
