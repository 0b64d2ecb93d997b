"""Every sample of a tar file, and every row of the Parquet file beside it, is counted once."""

import json
import lzma
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_pipelines.rejections import Reason, Rejection
from data_pipelines.sources.rows import MAX_PICTURE_BYTES, RawPair
from tests.data_pipelines.layouts import add_member, write_img2dataset, write_parquet
from tests.data_pipelines.sources.reading import (
    captions_of,
    open_source,
    pairs_of,
    read,
    reasons_of,
)

Members = Sequence[tuple[str, bytes]]
GOOD = [("a.jpg", b"A"), ("a.txt", b"one")]
LAST = [("z.jpg", b"Z"), ("z.txt", b"last")]


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            add_member(archive, name, content)
    return path


def write_data_set(tmp_path: Path, *, failed: int, parquet: bool = True) -> Path:
    """Write a tar of four samples, 4,096 bytes each."""
    (tmp_path / "a.png").write_bytes(b"p" * 600)
    rows = [{"image": "a.png", "caption": f"caption {number}"} for number in range(4)]
    folder = tmp_path / "raw"
    write_img2dataset(tmp_path, rows, folder, failed=failed)
    if not parquet:
        (folder / "00000.parquet").unlink()
    return folder


def test_rows_that_were_not_downloaded_are_counted(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, failed=3)

    rows = read(folder, tmp_path / "work")

    assert captions_of(rows) == [f"caption {number}" for number in range(4)]
    assert reasons_of(rows) == {Reason.FAILED_DOWNLOAD: 3}
    assert isinstance(rows[-1], Rejection)
    assert rows[-1].place == "00000.tar '000000006'"
    assert rows[-1].detail == "failed_to_download: HTTP Error 404: Not Found"
    assert isinstance(rows[0], RawPair)
    assert rows[0].record == {"caption": "caption 0", "key": "000000000", "status": "success"}


def test_without_a_parquet_file_only_members_count(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, failed=3, parquet=False)

    rows = read(folder, tmp_path / "work")

    assert len(rows) == len(captions_of(rows)) == 4


def test_samples_that_the_tar_lacks_are_missing(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, failed=1)
    write_tar(folder / "00000.tar", [("000000001.jpg", b"x"), ("000000001.txt", b"t")])

    rows = read(folder, tmp_path / "work")

    assert reasons_of(rows) == {Reason.MISSING_IMAGE: 3, Reason.FAILED_DOWNLOAD: 1}
    assert captions_of(rows) == ["t"]


# A sample has three members, each a header and a content of 512 or 1,024 bytes.
SAMPLE = 3 * 512 + 1024 + 2 * 512


@pytest.mark.parametrize(
    ("size", "num_whole"),
    [
        pytest.param(2 * SAMPLE + 512 + 100, 2, id="within a picture"),
        pytest.param(3 * SAMPLE - 300, 2, id="within the last member of a sample"),
        pytest.param(2 * SAMPLE + 100, 1, id="within a header, so the sample before may lack one"),
        pytest.param(700, 0, id="within the first member"),
    ],
)
@pytest.mark.parametrize("parquet", [True, False])
def test_rows_of_a_cut_tar_are_counted(
    tmp_path: Path, size: int, num_whole: int, parquet: bool
) -> None:
    folder = write_data_set(tmp_path, failed=1, parquet=parquet)
    os.truncate(folder / "00000.tar", size)

    rows = read(folder, tmp_path / "work")

    assert captions_of(rows) == [f"caption {number}" for number in range(num_whole)]
    if parquet:
        expected = {Reason.DAMAGED_SHARD: 4 - num_whole, Reason.FAILED_DOWNLOAD: 1}
        assert reasons_of(rows) == expected
    else:
        assert reasons_of(rows) == {Reason.DAMAGED_SHARD: 1}


def test_a_flipped_header_costs_the_rest(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, failed=0)
    content = bytearray((folder / "00000.tar").read_bytes())
    content[2 * SAMPLE + 5] ^= 1
    (folder / "00000.tar").write_bytes(content)

    rows = read(folder, tmp_path / "work")

    assert captions_of(rows) == ["caption 0"]
    assert reasons_of(rows) == {Reason.DAMAGED_SHARD: 3}


def test_a_damaged_parquet_file_is_a_row_of_its_own(tmp_path: Path) -> None:
    folder = write_data_set(tmp_path, failed=2)
    (folder / "00000.parquet").write_bytes(b"PAR1 and nothing else")

    rows = read(folder, tmp_path / "work")

    assert len(captions_of(rows)) == 4
    assert reasons_of(rows) == {Reason.DAMAGED_SHARD: 1}


@pytest.mark.parametrize(
    ("members", "captions", "reasons"),
    [
        pytest.param([("b.jpg", b"B")], [], {Reason.MISSING_FIELD: 1}, id="no caption"),
        pytest.param([("b.txt", b"B")], [], {Reason.MISSING_IMAGE: 1}, id="no picture"),
        pytest.param(
            [("b.jpg", b""), ("b.txt", b"\xff")], [], {Reason.MISSING_FIELD: 1}, id="not UTF-8"
        ),
        pytest.param(
            [("b.jpg", b""), ("b.txt", b"x" * (2 << 20))],
            [],
            {Reason.CAPTION_TOO_LONG: 1},
            id="a caption of 2 MB",
        ),
        pytest.param(
            [("b.jpg", b""), ("b.json", b'{"caption": ["x", "y"]}')], ["x", "y"], {}, id="json"
        ),
        pytest.param(
            [("b.jpg", b""), ("b.json", b'{"caption": 7}')],
            [],
            {Reason.MISSING_FIELD: 1},
            id="a number as caption",
        ),
        pytest.param(
            [("b.jpg", b""), ("b.txt", b"x"), ("b.json", b'{"n": NaN}')],
            [],
            {Reason.NOT_JSON: 1},
            id="NaN in the json",
        ),
        pytest.param(
            [("b.jpg", b""), ("b.txt", b"x"), ("b.pkl", pickle.dumps(print))],
            ["x"],
            {},
            id="a pickle is not read",
        ),
        pytest.param([("b.pkl", b"")], [], {Reason.MISSING_IMAGE: 1}, id="nothing but a pickle"),
        pytest.param(
            [("../b.jpg", b""), ("../b.txt", b"x")],
            [],
            {Reason.UNSAFE_PATH: 1},
            id="a key that leaves its folder",
        ),
        pytest.param(
            [("/etc/b.jpg", b""), ("/etc/b.txt", b"x")],
            [],
            {Reason.UNSAFE_PATH: 1},
            id="an absolute key",
        ),
        pytest.param(
            [("a.txt", b"again"), ("a.jpg", b"again")],
            [],
            {Reason.DUPLICATE_KEY: 1},
            id="members again",
        ),
        pytest.param(
            [("b.jpg", b""), ("c.jpg", b""), ("b.txt", b"x"), ("c.txt", b"y")],
            ["x", "y"],
            {},
            id="members apart from each other",
        ),
        pytest.param(
            [("b.jpg", b"<html>"), ("b.txt", b"x")], ["x"], {}, id="HTML is for the decoder"
        ),
        pytest.param([("b.JPG", b""), ("b.txt", b"x")], ["x"], {}, id="capital letters"),
    ],
)
def test_odd_members_cost_their_sample_alone(
    tmp_path: Path, members: Members, captions: list[str], reasons: dict[Reason, int]
) -> None:
    path = write_tar(tmp_path / "raw" / "0.tar", [*GOOD, *members, *LAST])

    rows = read(path, tmp_path / "work")

    assert captions_of(rows) == ["one", *captions, "last"]
    assert reasons_of(rows) == reasons
    assert pairs_of(rows)[0] == (b"A", "one")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["raw"]


def test_a_link_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        add_member(archive, "a.txt", b"x")

    rows = read(path, tmp_path / "work")

    assert reasons_of(rows) == {Reason.MISSING_IMAGE: 1}


def header_of(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_picture_of_2_gb_is_not_read(tmp_path: Path, is_whole: bool) -> None:
    size = 2 << 30
    path = tmp_path / "0.tar"
    with path.open("wb") as file:
        file.write(header_of("a.jpg", size))
        if is_whole:  # without taking space on the disk
            file.seek(512 + size)
            file.write(header_of("a.txt", 1) + b"x".ljust(512, b"\0") + bytes(1024))

    tracemalloc.start()
    rows = read(path, tmp_path / "work")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size > MAX_PICTURE_BYTES
    reason = Reason.IMAGE_TOO_LARGE if is_whole else Reason.DAMAGED_SHARD
    assert reasons_of(rows) == {reason: 1}
    assert peak < 16 << 20


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lzma.compress(bytes(32 << 20)), id="an xz bomb"),
        pytest.param(b"<html>404</html>", id="HTML"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_file_that_is_no_tar_is_one_row(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(content)

    tracemalloc.start()
    rows = read(path, tmp_path / "work")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert reasons_of(rows) == {Reason.DAMAGED_SHARD: 1}
    assert peak < 16 << 20


def test_damage_is_told_where_no_row_is_known_to_be_lost(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(b"<html>404</html>")
    columns = {"key": ["0", "1"], "status": ["failed_to_download"] * 2}
    write_parquet(folder / "00000.parquet", columns, ["varchar"] * 2)

    rows = read(folder, tmp_path / "work")

    assert reasons_of(rows) == {Reason.FAILED_DOWNLOAD: 2, Reason.DAMAGED_SHARD: 1}


def test_another_key_of_the_json_may_be_the_caption(tmp_path: Path) -> None:
    members = [*GOOD, ("a.json", json.dumps({"alt": "other"}).encode())]
    path = write_tar(tmp_path / "raw" / "0.tar", members)

    rows = read(path, tmp_path / "work", caption_key="alt")

    assert captions_of(rows) == ["other"]


def test_a_range_names_the_tars_to_read(tmp_path: Path) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number:05d}.tar", [("a.jpg", b""), ("a.txt", b"%d" % number)])

    rows = read(tmp_path / "{00001..00002}.tar", tmp_path / "work")

    assert captions_of(rows) == ["1", "2"]
    with pytest.raises(ValueError, match=r"there is no 00004\.tar in"):
        open_source(tmp_path / "{00003..00004}.tar", tmp_path / "work")


def test_parts_are_the_tars(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar"):
        write_tar(tmp_path / name, GOOD)

    source = open_source(tmp_path, tmp_path / "work")

    assert [part.file for part in source.parts()] == ["a.tar", "b.tar"]


def test_a_long_name_beyond_the_limit_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate((1 << 30) + 2048)

    tracemalloc.start()
    rows = read(path, tmp_path / "work")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert reasons_of(rows) == {Reason.DAMAGED_SHARD: 1}
    assert peak < 64 << 20
