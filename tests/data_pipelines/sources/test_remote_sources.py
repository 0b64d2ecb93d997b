"""Sources on web servers and in object stores give the same rows as local ones."""

import json
import tarfile
from pathlib import Path

import pytest

from data_pipelines.rejections import Reason
from data_pipelines.sources import pictures
from tests.data.shard_server import ShardServer, trust
from tests.data_pipelines.layouts import add_member, write_img2dataset
from tests.data_pipelines.sources.reading import (
    captions_of,
    open_source,
    pairs_of,
    read,
    reasons_of,
)


@pytest.fixture(params=["https", "s3"])
def place(
    request: pytest.FixtureRequest,
    servers: tuple[ShardServer, ShardServer],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[ShardServer, str]:
    """A server without files, and a folder's location in it."""
    trust(monkeypatch, *servers)
    web, store = servers
    for server in servers:
        server.files.clear()
        server.faults.clear()
        server.requests.clear()
    return (
        (web, f"{web.address}/data/set") if request.param == "https" else (store, "s3://data/set")
    )


def put(server: ShardServer, folder: Path) -> None:
    """Serve the files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            server.files[f"/data/set/{path.relative_to(folder)}"] = path.read_bytes()


def test_a_table_and_its_pictures_are_remote(
    place: tuple[ShardServer, str], tmp_path: Path
) -> None:
    server, location = place
    lines = [
        {"image": "images/a.png", "caption": ["x", "y"]},
        {"image": "images/none.png", "caption": "z"},
        {"image": "../a.png", "caption": "z"},
    ]
    server.files["/data/set/captions.jsonl"] = "\n".join(map(json.dumps, lines)).encode()
    server.files["/data/set/images/a.png"] = b"picture"

    rows = read(f"{location}/captions.jsonl", tmp_path / "work")

    assert captions_of(rows) == ["x", "y", "z"]
    assert reasons_of(rows) == {Reason.UNSAFE_PATH: 1}
    assert rows[0].picture.read() == b"picture"  # type: ignore[union-attr]
    with pytest.raises(Exception, match="missing_image"):
        rows[2].picture.read()  # type: ignore[union-attr]
    read(f"{location}/captions.jsonl", tmp_path / "work")
    assert server.requests["/data/set/captions.jsonl"] == 1  # the copy is used again


def test_tars_are_remote(place: tuple[ShardServer, str], tmp_path: Path) -> None:
    server, location = place
    (tmp_path / "a.png").write_bytes(b"picture")
    pairs = [{"image": "a.png", "caption": f"caption {number}"} for number in range(4)]
    write_img2dataset(tmp_path, pairs, tmp_path / "raw", per_tar=2, failed=1)
    put(server, tmp_path / "raw")
    source = open_source(f"{location}/{{00000..00001}}.tar", tmp_path / "work")

    found = []
    for part in source.parts():
        for row in source.rows(part):
            found.append(row)
            assert pairs_of([row]) in ([], [(b"picture", f"caption {len(captions_of(found)) - 1}")])

    assert captions_of(found) == [pair["caption"] for pair in pairs]
    assert reasons_of(found) == {Reason.FAILED_DOWNLOAD: 2}
    assert not list((tmp_path / "work").rglob("*.tar"))  # copies are gone


def test_pictures_may_be_remote_where_the_table_is_local(
    place: tuple[ShardServer, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_PICTURE_BYTES", 1000)
    server, location = place
    server.files["/data/set/a.png"] = b"picture"
    server.files["/data/set/big.png"] = bytes(1001)
    path = tmp_path / "pairs.csv"
    path.write_text("image,caption\na.png,x\nbig.png,y\n")

    good, big = read(path, tmp_path / "work", images_root=location)

    assert pairs_of([good]) == [(b"picture", "x")]
    with pytest.raises(Exception, match="image_too_large"):
        pairs_of([big])


def test_a_folder_in_a_store_is_listed(place: tuple[ShardServer, str], tmp_path: Path) -> None:
    server, location = place
    for name in ("b", "a"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            add_member(archive, f"{name}.jpg", b"picture")
            add_member(archive, f"{name}.txt", name.encode())
        server.files[f"/data/set/{name}.tar"] = (tmp_path / f"{name}.tar").read_bytes()
    server.files["/data/set/deeper/c.tar"] = b""

    if location.startswith("https"):
        with pytest.raises(ValueError, match=r"on a web server, which lists no files: name the fi"):
            read(location, tmp_path / "work")
    else:
        assert captions_of(read(location, tmp_path / "work")) == ["a", "b"]


def test_a_missing_file_is_named(place: tuple[ShardServer, str], tmp_path: Path) -> None:
    _, location = place

    with pytest.raises(ValueError, match=r"data/set/pairs\.csv does not exist"):
        read(f"{location}/pairs.csv", tmp_path / "work")
