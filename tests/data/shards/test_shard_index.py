"""The index of a shard says where its samples are, whatever tool wrote the tar file."""

import io
import random
import tarfile
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ernie_vilg.data.shards.damage import DamagedShardError
from ernie_vilg.data.shards.open_shards import LocalFolder, open_shard, read_shard
from ernie_vilg.data.shards.shard_index import RECORD_BYTES, index_bytes, parse_index
from ernie_vilg.data.shards.tar_index import describe_shard, index_tar
from ernie_vilg.storage.shard_manifest import Shard, index_path
from tests.data.token_shards import npy, write_token_shards

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
    index = index_tar(io.BytesIO(content), MEMBERS, "a.tar")

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


def token_shard(folder: Path) -> tuple[Path, Shard]:
    path = folder / "tokens-00000.tar"
    manifest = write_token_shards(folder, [3])
    return path, manifest.shards[0]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path, shard = token_shard(tmp_path)
    with path.open("rb") as file:
        index = index_tar(file, MEMBERS, "a.tar")

    read = parse_index(index_bytes(index), shard, "a.tar")

    assert read.keys.tolist() == [b"00000000", b"00000001", b"00000002"]
    assert read.problems == index.problems == {}
    for name in MEMBERS:
        assert read.records[name].tolist() == index.records[name].tolist()
        assert read.sizes[name].tolist() == index.sizes[name].tolist()


def test_a_shard_without_index_reads_the_same_samples(tmp_path: Path) -> None:
    _, shard = token_shard(tmp_path)
    with_index = read_shard(tmp_path, shard)

    (tmp_path / "tokens-00000.tar.index").unlink()

    assert read_shard(tmp_path, replace(shard, index=None)) == with_index


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda content: None, "missing", id="missing"),
        pytest.param(lambda content: content[:-1], "size", id="cut"),
        pytest.param(lambda content: content[:-1] + b"x", "sha256", id="changed"),
    ],
)
def test_an_index_that_is_not_the_manifests_is_found(
    tmp_path: Path, damage: object, reason: str
) -> None:
    path, shard = token_shard(tmp_path)
    content = damage(index_path(path).read_bytes())  # type: ignore[operator]
    index_path(path).unlink()
    if content is not None:
        index_path(path).write_bytes(content)

    with pytest.raises(DamagedShardError, match=r"tokens-00000\.tar\.index") as caught:
        open_shard(LocalFolder(str(tmp_path)), shard)

    assert caught.value.reason == reason


def tar_with(names: list[str], tar_format: int = tarfile.PAX_FORMAT, **headers: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format, pax_headers=headers) as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
                continue
            content = name.encode()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


FOLDER = "a" * 60 + "/" + "b" * 50
"""Together with a name it is longer than a header's 100 bytes."""


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(tar_with([f"{FOLDER}/1.txt"], tarfile.USTAR_FORMAT), id="prefix of ustar"),
        pytest.param(tar_with([f"{FOLDER}/1.txt"], tarfile.GNU_FORMAT), id="long name of GNU"),
        pytest.param(tar_with([f"{FOLDER}/1.txt"], comment="x" * (2 << 20)), id="2 MB of pax"),
        pytest.param(
            tar_with([f"{FOLDER.partition('/')[0]}/", f"./{FOLDER}/1.txt"]), id="a folder's entry"
        ),
    ],
)
def test_shards_of_other_tools_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)

    (sample,) = read_shard(
        tmp_path, describe_shard(tmp_path / "a.tar", samples=1, members=("txt",))
    )

    assert sample["__key__"] == f"{FOLDER}/1".encode()
    assert sample["txt"].removeprefix(b"./") == f"{FOLDER}/1.txt".encode()


def test_a_name_in_a_late_pax_record_counts(tmp_path: Path) -> None:
    content = bytearray(tar_with(["plain.txt"], tarfile.USTAR_FORMAT))
    record = b"1572868 comment=" + b"x" * (1572868 - 17) + b"\n" + b"17 path=late.txt\n"
    extension = tarfile.TarInfo("x")
    extension.type, extension.size = tarfile.XHDTYPE, len(record)
    padding = bytes(-len(record) % RECORD_BYTES)
    (tmp_path / "a.tar").write_bytes(
        extension.tobuf(tarfile.USTAR_FORMAT) + record + padding + content
    )

    (sample,) = read_shard(
        tmp_path, describe_shard(tmp_path / "a.tar", samples=1, members=("txt",))
    )

    assert sample["__key__"] == b"late"


def test_archives_one_after_another_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_with(["1.txt"]) + tar_with(["2.txt", "3.txt"]))

    samples = read_shard(tmp_path, describe_shard(tmp_path / "a.tar", samples=3, members=("txt",)))

    assert [sample["__key__"] for sample in samples] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("bytes_left", "message"),
    [
        pytest.param(
            3 * 512 + 3, r"is cut: it ends in member '2\.txt', at byte 1539", id="content"
        ),
        pytest.param(2 * 512 + 300, "is cut: it ends in a header, at byte 1324", id="header"),
    ],
)
def test_a_cut_shard_is_called_cut(tmp_path: Path, bytes_left: int, message: str) -> None:
    # The manifest is of the cut file, as where a shard was cut before it was described.
    path = tmp_path / "a.tar"
    path.write_bytes(tar_with(["1.txt", "2.txt"], tarfile.USTAR_FORMAT)[:bytes_left])

    with pytest.raises(ValueError, match=message) as caught:
        read_shard(tmp_path, describe_shard(path, samples=2, members=("txt",)))

    assert isinstance(caught.value, DamagedShardError)
    assert caught.value.reason == "cut"


def test_a_cut_header_is_not_completed_by_the_block_before(tmp_path: Path) -> None:
    # A block of 1 MiB, then a quarter of a header, behind which the block before had a whole one.
    first = tar_with(["0.txt"], tarfile.USTAR_FORMAT)[:RECORD_BYTES]
    filler = tarfile.TarInfo("0.txt")
    filler.size = (1 << 20) - RECORD_BYTES
    path = tmp_path / "a.tar"
    later = tar_with(["1.txt"], tarfile.USTAR_FORMAT)[: 2 * RECORD_BYTES]
    content = filler.tobuf(tarfile.USTAR_FORMAT) + later * ((1 << 20) // len(later))
    path.write_bytes(content[: 1 << 20] + first[:128])

    with pytest.raises(DamagedShardError, match="is cut: it ends in a header") as caught:
        describe_shard(path, samples=2, members=("txt",))

    assert caught.value.reason == "cut"


@pytest.mark.parametrize("what", ["tar", "index"])
def test_no_mutation_makes_anything_but_samples_or_named_damage(tmp_path: Path, what: str) -> None:
    path, shard = token_shard(tmp_path)
    target = path if what == "tar" else index_path(path)
    original = target.read_bytes()
    draws = random.Random(5)
    outcomes: Counter[str] = Counter()
    for _ in range(400):
        content = bytearray(original)
        for _ in range(draws.randint(1, 3)):
            content[draws.randrange(len(content))] = draws.choice([0, 0x80, 0xFF, ord("7")])
        target.write_bytes(content[: draws.choice([len(content), draws.randrange(len(content))])])
        try:
            if what == "tar":
                # Described as it is, so that its hash is right and its headers are believed.
                described = describe_shard(path, samples=3, members=MEMBERS)
                opened = open_shard(LocalFolder(str(tmp_path)), described)
            else:
                parse_index(target.read_bytes(), shard, "a.tar")
                outcomes["read"] += 1
                continue
            with closing(opened.file):
                outcomes["read"] += sum(opened.problem(index) is None for index in range(3))
        except DamagedShardError as error:
            outcomes[error.reason] += 1

    assert outcomes["read"]
    assert set(outcomes) - {"read"} <= {"cut", "not_a_tar", "member_type", "samples", "index"}
