"""A folder of shards is what its manifest says, or it is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.files import read_json, write_json
from ernie_vilg.manifest import (
    Manifest,
    Shard,
    describe_shard,
    read_manifest,
    verify_shard,
    write_manifest,
)

SHARD = Shard(file="a-00000.tar", samples=3, bytes=10, sha256="0" * 64, members=("json", "txt"))
MANIFEST = Manifest(
    kind="image",
    shards=(SHARD, replace(SHARD, file="a-00001.tar", samples=2)),
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

    with pytest.raises(ValueError, match="format_version 99, this code reads 1"):
        read_manifest(tmp_path, "image")


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    path = tmp_path / "a-00000.tar"
    path.write_bytes(b"abc")
    return describe_shard(path, samples=1, members=("txt", "json"))


def test_a_shard_is_described_by_size_hash_and_sorted_members(shard: Shard) -> None:
    assert shard == Shard(
        file="a-00000.tar",
        samples=1,
        bytes=3,
        # FIPS 180-2, appendix B.1.
        sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        members=("json", "txt"),
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
