"""Writing of samples to tar files, with the same bytes for the same samples.

Source: the layout of members is WebDataset's (https://github.com/webdataset/webdataset).
"""

import os
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import BinaryIO

from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.data.shards.shard_index import SAFE_KEY
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.storage.files import writing_path
from ernie_vilg.storage.shard_manifest import Shard

_OWNER = "ernie_vilg"


def shard_name(prefix: str, index: int) -> str:
    """Return a shard's file name, such as "images-00000.tar"."""
    return f"{prefix}-{index:05d}.tar"


def write_shard(path: Path, samples: Iterable[Sample], *, members: tuple[str, ...]) -> Shard | None:
    """Write samples as one tar file, whole or not at all, and its index beside it.

    Owner, mode and time of every member are fixed, so the file depends only on the samples.

    Args:
        path: file to write.
        samples: samples with a key and exactly these members.
        members: extensions, such as ("json", "png", "txt").

    Returns:
        the manifest's entry, or None, without a file, if there is no sample.
    """
    count = 0
    temporary = writing_path(path)
    with temporary.open("wb") as file:
        for sample in samples:
            key = sample[KEY]
            assert SAFE_KEY.fullmatch(key), key
            assert set(sample) == {KEY, *members}, sorted(sample)
            for member in sorted(members):
                _write_member(file, f"{key.decode()}.{member}", sample[member])
            count += 1
        end = file.tell() + 2 * tarfile.BLOCKSIZE  # two empty records end an archive
        file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        file.flush()
        os.fsync(file.fileno())
    if count == 0:
        temporary.unlink()
        return None
    temporary.replace(path)
    return describe_shard(path, samples=count, members=members)


def _write_member(file: BinaryIO, name: str, content: bytes) -> None:
    file.write(_header(name, len(content)))
    file.write(content)
    file.write(bytes(-len(content) % tarfile.BLOCKSIZE))


def _header(name: str, size: int) -> bytes:
    """Return the header of a member, as tarfile writes it.

    Source: the ustar format of POSIX.1-2017 (pax, "ustar Interchange Format").
    """
    if len(name) > tarfile.LENGTH_NAME:
        return _member(name, size).tobuf(tarfile.PAX_FORMAT)
    header = bytearray(_empty_header())  # tarfile takes longer than all other writing of a sample
    header[: len(name)] = name.encode()
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8  # the checksum is computed with spaces in its place
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@cache
def _empty_header() -> bytes:
    return _member("", 0).tobuf(tarfile.PAX_FORMAT)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    member.uname = member.gname = _OWNER
    return member
