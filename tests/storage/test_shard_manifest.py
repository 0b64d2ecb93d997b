"""A folder of shards matches its manifest, or it is refused."""

import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.storage.remote import TransferLimits
from ernie_vilg.storage.shard_manifest import (
    Manifest,
    Shard,
    StoredFile,
    describe_file,
    index_path,
    read_manifest,
    read_manifest_at,
    verify_shard,
    write_manifest,
)
from tests.data.shard_server import ShardServer, trust

INDEX = StoredFile(file="a-00000.tar.index", bytes=100, sha256="3" * 64)
SHARD = Shard(
    file="a-00000.tar",
    samples=3,
    bytes=1536,
    sha256="0" * 64,
    members=("json", "txt"),
    index=INDEX,
)
MANIFEST = Manifest(
    kind="image",
    shards=(
        SHARD,
        replace(
            SHARD,
            file="a-00001.tar",
            samples=2,
            index=replace(INDEX, file="a-00001.tar.index"),
        ),
    ),
    settings={"image_size": 64},
    lineage={"text_tokenizer": "1" * 64},
)


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)

    assert read_manifest(tmp_path, "image") == MANIFEST
    assert read_manifest(tmp_path, "image").digest() == MANIFEST.digest()


def test_samples_are_those_of_all_shards(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)

    assert MANIFEST.num_samples == 5
    assert read_json(tmp_path / "manifest.json")["samples"] == 5


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(replace(MANIFEST, kind="token"), id="kind"),
        pytest.param(replace(MANIFEST, settings={"image_size": 32}), id="settings"),
        pytest.param(replace(MANIFEST, lineage={}), id="lineage"),
        pytest.param(replace(MANIFEST, shards=MANIFEST.shards[::-1]), id="order of shards"),
        pytest.param(
            replace(MANIFEST, shards=(replace(SHARD, sha256="2" * 64), MANIFEST.shards[1])),
            id="content of a shard",
        ),
    ],
)
def test_the_digest_names_everything(changed: Manifest) -> None:
    assert changed.digest() != MANIFEST.digest()


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no manifest\.json: name a folder written by"):
        read_manifest(tmp_path, "image")


def test_shards_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)

    with pytest.raises(ValueError, match="holds image shards where token shards are needed"):
        read_manifest(tmp_path, "token")


def test_another_version_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    content = read_json(tmp_path / "manifest.json")
    write_json(tmp_path / "manifest.json", {**content, "format_version": 99})

    with pytest.raises(ValueError, match="format_version 99, this code reads 1 to 2"):
        read_manifest(tmp_path, "image")


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    path = tmp_path / "a-00000.tar"
    path.write_bytes(b"abc")
    index_path(path).write_bytes(b"where")
    return Shard(
        **asdict(describe_file(path)),
        samples=1,
        members=("json", "txt"),
        index=describe_file(index_path(path)),
    )


def test_a_file_is_described_by_size_and_hash(shard: Shard) -> None:
    assert shard == Shard(
        file="a-00000.tar",
        samples=1,
        bytes=3,
        # FIPS 180-2, appendix B.1.
        sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        members=("json", "txt"),
        index=shard.index,
    )


def test_an_untouched_shard_passes(tmp_path: Path, shard: Shard) -> None:
    verify_shard(tmp_path, shard)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"abcd", "has 4 bytes where the manifest says 3", id="longer"),
        pytest.param(b"ab", "has 2 bytes where the manifest says 3", id="cut"),
        pytest.param(b"abd", "differs from the manifest's SHA-256", id="one byte changed"),
    ],
)
def test_a_changed_shard_is_refused(
    tmp_path: Path, shard: Shard, content: bytes, message: str
) -> None:
    (tmp_path / shard.file).write_bytes(content)

    with pytest.raises(ValueError, match=message):
        verify_shard(tmp_path, shard)


def test_a_missing_shard_is_refused(tmp_path: Path, shard: Shard) -> None:
    (tmp_path / shard.file).unlink()

    with pytest.raises(ValueError, match=r"a-00000\.tar is missing"):
        verify_shard(tmp_path, shard)


def test_a_changed_index_is_refused(tmp_path: Path, shard: Shard) -> None:
    (tmp_path / "a-00000.tar.index").write_bytes(b"there")

    with pytest.raises(
        ValueError, match=r"a-00000\.tar\.index differs from the manifest's SHA-256"
    ):
        verify_shard(tmp_path, shard)


def test_a_manifest_of_before_is_read_and_keeps_its_digest(tmp_path: Path) -> None:
    entry = {
        "file": "a.tar",
        "samples": 1,
        "bytes": 512,
        "sha256": "0" * 64,
        "members": ["txt"],
    }
    content = {
        "format_version": 1,
        "kind": "image",
        "samples": 1,
        "settings": {"image_size": 8},
        "lineage": {},
        "shards": [entry],
    }
    write_json(tmp_path / "manifest.json", content)

    manifest = read_manifest(tmp_path, "image")

    assert manifest.shards[0].index is None
    # The hash of the content above as JSON with sorted keys and no spaces.
    assert manifest.digest() == "7223d2716fd69ed430dc59c4fcc407a8d1542583166dc848aad6e7391dacbebc"


def written(folder: Path, **changes: object) -> Path:
    """Write a manifest whose second shard is changed, and return the folder."""
    write_manifest(folder, MANIFEST)
    content = read_json(folder / "manifest.json")
    content["shards"][1].update(changes)
    write_json(folder / "manifest.json", content)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "a/b.tar"}, r"file='a/b\.tar', which is no plain file name"),
        ({"file": "../b.tar"}, r"file='\.\./b\.tar', which is no plain file name"),
        ({"file": "..tar"}, r"file='\.\.tar', which is no plain file name"),
        ({"file": "b\n.tar"}, r"which is no plain file name"),
        ({"file": "a-00000.tar"}, r"names the shard a-00000\.tar twice"),
        ({"samples": 0}, r"a-00001\.tar and samples=0, which is no positive whole number"),
        ({"samples": True}, r"samples=True, which is no positive whole number"),
        ({"samples": 300_000_000}, r"samples=300000000, more than its 1536 bytes can hold"),
        ({"bytes": -1}, r"bytes=-1, which is no positive whole number"),
        ({"bytes": 1.5}, r"bytes=1\.5, which is no positive whole number"),
        ({"sha256": "0" * 63}, r"which is not 64 hexadecimal digits"),
        ({"sha256": "g" * 64}, r"which is not 64 hexadecimal digits"),
        ({"members": ["json", "pkl"]}, r"members of extension 'pkl', where only codes\.npy, "),
        ({"members": []}, r"members=\[\], which is no list of extensions"),
        ({"members": ["txt", "json"]}, r"members=\['txt', 'json'\], which are not sorted"),
        ({"further": 1}, r"other entries than bytes, file, index, members, samples, sha256"),
        ({"index": None}, r"a-00001\.tar and an index of other entries than bytes, file, sha256"),
        (
            {"index": {"file": "x", "bytes": 1537, "sha256": "0" * 64}},
            r"an index of bytes=1537, which is more than 1536 bytes need",
        ),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(written(tmp_path, **changes), "image")


@pytest.mark.parametrize("value", [10**9, -1, 1.5, "64", True, None])
def test_a_size_that_no_data_set_has_is_refused(tmp_path: Path, value: object) -> None:
    write_manifest(tmp_path, replace(MANIFEST, settings={"image_size": value}))

    with pytest.raises(ValueError, match=r"settings\.image_size=.* no whole number up to 16384"):
        read_manifest(tmp_path, "image")


@pytest.mark.parametrize("content", ["[]", "null", '{"format_version": 1, "kind": "image"}'])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)

    with pytest.raises(ValueError, match=r"manifest\.json has (format_version None|no shards)"):
        read_manifest(tmp_path, "image")


def test_a_local_location_is_a_folder(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)

    assert read_manifest_at(str(tmp_path), "image") == MANIFEST


def test_a_command_is_no_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match="begins with pipe: is not read"):
        read_manifest_at("pipe:touch canary", "image")

    assert not list(tmp_path.iterdir())


@pytest.fixture(params=["https", "s3"])
def place(
    request: pytest.FixtureRequest,
    servers: tuple[ShardServer, ShardServer],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[ShardServer, str]:
    """An empty server, and the location of a folder in it."""
    trust(monkeypatch, *servers)
    server = servers[request.param == "s3"]
    server.files.clear()
    server.faults.clear()
    return server, f"{server.address}/shards" if request.param == "https" else "s3://shards"


def test_a_remote_manifest_is_that_of_a_folder(
    tmp_path: Path, place: tuple[ShardServer, str]
) -> None:
    server, location = place
    write_manifest(tmp_path, MANIFEST)
    server.files["/shards/manifest.json"] = (tmp_path / "manifest.json").read_bytes()
    server.fail("/shards/manifest.json", "503", "reset")

    read = read_manifest_at(location, "image", TransferLimits(wait_seconds=0.01))

    assert read.digest() == MANIFEST.digest()


def test_a_remote_folder_without_manifest_is_refused(place: tuple[ShardServer, str]) -> None:
    with pytest.raises(ValueError, match=r"shards has no manifest\.json: name a folder written"):
        read_manifest_at(place[1], "image")


def test_a_remote_manifest_that_is_not_json_is_refused(place: tuple[ShardServer, str]) -> None:
    server, location = place
    server.files["/shards/manifest.json"] = b"<html>"

    with pytest.raises(ValueError, match=r"shards/manifest\.json is not valid JSON"):
        read_manifest_at(location, "image")


def test_a_remote_manifest_that_is_deep_is_refused(place: tuple[ShardServer, str]) -> None:
    server, location = place
    server.files["/shards/manifest.json"] = b"[" * 100_000 + b"]" * 100_000

    with pytest.raises(ValueError, match=r"more than 64 nested brackets"):
        read_manifest_at(location, "image")


def test_no_mutation_makes_anything_but_a_manifest_or_a_refusal(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    original = path.read_bytes()
    draws = random.Random(11)
    num_read = 0
    for _ in range(2000):
        content = bytearray(original)
        for _ in range(draws.randint(1, 3)):
            content[draws.randrange(len(content))] = draws.choice([*b'0"9[]{},:-e. ', 0, 0xFF])
        path.write_bytes(content)
        try:
            manifest = read_manifest(tmp_path, "image")
        except InputError:
            continue
        num_read += 1
        assert all(512 * shard.samples <= shard.bytes for shard in manifest.shards)

    assert num_read
