"""A shard is read whole and unchanged, or not at all."""

import gzip
import io
import tarfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
import webdataset

from ernie_vilg.data.shards.open_shards import LocalFolder, OpenShards, open_shard, read_shard
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.storage.shard_manifest import Manifest, Shard
from tests.data.token_shards import MEMBERS, write_token_shards


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the file open
def test_samples_are_those_that_webdataset_reads(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [3])

    samples = read_shard(tmp_path, manifest.shards[0])

    theirs = list(webdataset.WebDataset(str(tmp_path / "tokens-00000.tar"), shardshuffle=False))
    assert len(samples) == len(theirs) == 3
    for ours, reference in zip(samples, theirs, strict=True):
        assert ours["__key__"].decode() == reference["__key__"]
        assert all(ours[member] == reference[member] for member in MEMBERS)


@pytest.mark.parametrize("cut", [1, 512, 700, 2048], ids=lambda cut: f"{cut} bytes short")
def test_a_truncated_shard_is_refused(tmp_path: Path, cut: int) -> None:
    manifest = write_token_shards(tmp_path, [3])
    path = tmp_path / manifest.shards[0].file
    path.write_bytes(path.read_bytes()[:-cut])

    with pytest.raises(ValueError, match=r"tokens-00000\.tar has \d+ bytes where the manifest"):
        read_shard(tmp_path, manifest.shards[0])


@pytest.mark.parametrize("position", [0, 600, 1500, 3000])
def test_a_changed_byte_is_found(tmp_path: Path, position: int) -> None:
    manifest = write_token_shards(tmp_path, [3])
    path = tmp_path / manifest.shards[0].file
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)

    with pytest.raises(ValueError, match="differs from the manifest's SHA-256"):
        read_shard(tmp_path, manifest.shards[0])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [3])
    (tmp_path / "tokens-00000.tar").unlink()

    with pytest.raises(ValueError, match=r"tokens-00000\.tar is missing"):
        read_shard(tmp_path, manifest.shards[0])


def described(path: Path, samples: int) -> Shard:
    """Describe a crafted shard as if it had been built so: its hash is right."""
    return describe_shard(path, samples=samples, members=MEMBERS)


def craft(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


FIRST = ["a.codes.npy", "a.json", "a.text.npy"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(FIRST[:2], r"sample .* has members \['codes.npy', 'json'\]", id="lacking"),
        pytest.param([*FIRST, "a.pkl"], "sample 'a' of .* has members", id="a pickle in excess"),
        pytest.param([*FIRST, "a.json"], "holds 2 samples where the manifest says 1", id="twice"),
        pytest.param([*FIRST, "b.json"], "holds 2 samples where the manifest says 1", id="more"),
    ],
)
def test_members_must_be_as_the_manifest_says(
    tmp_path: Path, names: list[str], message: str
) -> None:
    path = tmp_path / "shard.tar"
    craft(path, names)

    with pytest.raises(ValueError, match=message):
        read_shard(tmp_path, described(path, 1))


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)

    with pytest.raises(ValueError, match="is not a regular file"):
        read_shard(tmp_path, described(path, 1))


def test_a_compressed_file_under_the_name_of_a_tar_is_refused(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [3])
    path = tmp_path / manifest.shards[0].file
    path.write_bytes(gzip.compress(path.read_bytes()))

    with pytest.raises(ValueError, match="no uncompressed tar file"):
        read_shard(tmp_path, described(path, 3))


def test_members_of_another_set_are_refused(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [3])

    with pytest.raises(ValueError, match="has members"):
        read_shard(tmp_path, replace(manifest.shards[0], members=("json", "png", "txt")))


def test_samples_are_read_in_any_order_and_only_as_far_as_asked_for(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [5])
    opened = open_shard(LocalFolder(str(tmp_path)), manifest.shards[0])

    with opened.file:
        assert [opened.sample(index)["json"] for index in (4, 0, 2)] == [
            b'{"caption": "4"}',
            b'{"caption": "0"}',
            b'{"caption": "2"}',
        ]
        assert opened.member("json", 3) == b'{"caption": "3"}'


def open_shards(folder: Path, manifest: Manifest, waits: list[str], max_open: int) -> OpenShards:
    return OpenShards(LocalFolder(str(folder)), manifest, max_open=max_open, on_wait=waits.append)


def test_an_open_shard_is_read_from_though_its_file_is_gone(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [3, 2, 2])
    with closing(open_shards(tmp_path, manifest, [], max_open=2)) as shards:
        shards.get(0)
        (tmp_path / "tokens-00000.tar").unlink()

        assert shards.get(0).sample(2)["__key__"] == b"00000002"
        shards.get(1)
        shards.get(2)  # takes the first one's place
        with pytest.raises(ValueError, match="is missing"):
            shards.get(0)


def test_waiting_for_a_shard_is_told(tmp_path: Path) -> None:
    told = threading.Event()
    waits: list[str] = []

    class Slow(LocalFolder):
        """Opens nothing before its reader has said that it waits."""

        def open(self, shard: Shard) -> BinaryIO:
            assert told.wait(timeout=60)
            return super().open(shard)

    def on_wait(what: str) -> None:
        waits.append(what)
        told.set()

    manifest = write_token_shards(tmp_path, [3, 2])
    with closing(OpenShards(Slow(str(tmp_path)), manifest, max_open=2, on_wait=on_wait)) as shards:
        shards.get(1)
        shards.get(1)

    assert waits == [f"shard {tmp_path}/tokens-00001.tar", ""]


def test_shards_are_opened_ahead_of_their_use(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, [3, 2])
    waits: list[str] = []
    with closing(open_shards(tmp_path, manifest, waits, max_open=2)) as shards:
        shards.open_ahead([0, 1])
        while not all(future.done() for future in shards._shards.values()):
            time.sleep(0.01)
        shards.get(1)

    assert waits == []
