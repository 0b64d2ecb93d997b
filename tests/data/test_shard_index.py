"""What the index says of a tar file is what Python's own reader says."""

import hashlib
import io
import tarfile
import tempfile

import numpy as np
from ernie_vilg.data.tar_headers import RECORD_BYTES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ernie_vilg.data.shard_index import index_shard
from ernie_vilg.manifest import Shard
from tests.data.shards import npy

MEMBERS = ("codes.npy", "json", "text.npy")


def header(name: str, size: int) -> bytes:
    """Return a true header, which inside a member's content is a false one."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


CONTENTS = st.one_of(
    st.binary(max_size=1500),
    st.integers(0, 5000).map(bytes),
    st.builds(
        lambda before, false, after: before * bytes(RECORD_BYTES) + false + after,
        st.integers(0, 3),
        st.builds(header, st.sampled_from(["00000001.json", "x.codes.npy"]), st.integers(0, 2000)),
        st.binary(max_size=700),
    ),
)


def tar_of(contents: list[tuple[bytes, bytes, bytes]], tar_format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as archive:
        for number, sample in enumerate(contents):
            for name, content in zip(MEMBERS, sample, strict=True):
                member = tarfile.TarInfo(f"{number:08d}.{name}")
                member.size = len(content)
                member.mtime = 0.5 if tar_format == tarfile.PAX_FORMAT else 0
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@settings(deadline=None, max_examples=60)
@given(
    contents=st.lists(st.tuples(CONTENTS, CONTENTS, CONTENTS), min_size=1, max_size=8),
    tar_format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
@example(contents=[(bytes(1 << 20), b"{}", header("00000000.json", 8))], tar_format=0)
@example(contents=[(npy(np.zeros(4)), b"{}", b"")] * 1200, tar_format=0)  # several blocks
def test_members_lie_where_pythons_reader_finds_them(
    contents: list[tuple[bytes, bytes, bytes]], tar_format: int
) -> None:
    content = tar_of(contents, tar_format)
    shard = Shard(
        file="a.tar",
        samples=len(contents),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        members=MEMBERS,
    )
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(content)
        file.seek(0)
        index = index_shard(file, shard, "a.tar")

    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        theirs = {member.name: member for member in archive}
    assert not index.problems
    assert index.keys.tolist() == [b"%08d" % number for number in range(len(contents))]
    for name in MEMBERS:
        of_name = [theirs[f"{number:08d}.{name}"] for number in range(len(contents))]
        assert (index.records[name] * RECORD_BYTES).tolist() == [
            member.offset_data for member in of_name
        ]
        assert index.sizes[name].tolist() == [member.size for member in of_name]
