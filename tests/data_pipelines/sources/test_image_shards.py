"""An earlier run's shards are read back, each caption a row."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipelines.rejections import Reason
from data_pipelines.shard_writer import shard_name, write_shard
from data_pipelines.sources.rows import RawPair
from ernie_vilg.storage.shard_manifest import Manifest, write_manifest
from tests.data_pipelines.sources.reading import (
    captions_of,
    open_source,
    pairs_of,
    read,
    reasons_of,
)

CAPTIONS = [["x", "y"], ["z"], ["u"]]


def write(folder: Path, captions: str) -> Manifest:
    folder.mkdir()
    shards = []
    for index, some in enumerate((CAPTIONS[:2], CAPTIONS[2:])):
        samples = [
            {
                "__key__": b"%08d" % (2 * index + number),
                "png": b"picture %d" % (2 * index + number),
                "txt": "\n".join(texts).encode(),
                "json": json.dumps({"caption": texts[0], "n": number}).encode(),
            }
            for number, texts in enumerate(some)
        ]
        path = folder / shard_name("images", index)
        shard = write_shard(path, samples, members=("json", "png", "txt"))
        assert shard is not None
        shards.append(shard)
    settings = {"captions": captions}
    manifest = Manifest(kind="image", shards=tuple(shards), settings=settings, lineage={})
    write_manifest(folder, manifest)
    return manifest


def test_each_line_is_a_caption_where_the_manifest_says_so(tmp_path: Path) -> None:
    write(tmp_path / "shards", "all")

    rows = read(tmp_path / "shards", tmp_path / "work")

    assert pairs_of(rows) == [
        (b"picture 0", "x"),
        (b"picture 0", "y"),
        (b"picture 1", "z"),
        (b"picture 2", "u"),
    ]
    assert isinstance(rows[1], RawPair)
    assert rows[1].record == {"caption": "y", "n": 0}
    assert rows[1].picture_id == rows[0].picture_id  # type: ignore[union-attr]


def test_else_the_rows_are_known_before(tmp_path: Path) -> None:
    write(tmp_path / "shards", "separate")
    source = open_source(tmp_path / "shards", tmp_path / "work")

    assert [(part.first_row, part.rows) for part in source.parts()] == [(0, 2), (2, 1)]


@pytest.mark.parametrize("way", ["flip", "cut", "remove"])
def test_samples_of_a_damaged_shard_are_counted(tmp_path: Path, way: str) -> None:
    write(tmp_path / "shards", "first")
    path = tmp_path / "shards" / "images-00000.tar"
    content = path.read_bytes()
    if way == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if way == "cut" else content[:-1] + b"\1")

    rows = read(tmp_path / "shards", tmp_path / "work")

    assert reasons_of(rows) == {Reason.DAMAGED_SHARD: 2}
    assert captions_of(rows) == ["u"]


def test_token_shards_are_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path / "shards", "all")
    write_manifest(tmp_path / "shards", replace(manifest, kind="token"))

    with pytest.raises(ValueError, match="holds token shards where image shards are needed"):
        read(tmp_path / "shards", tmp_path / "work")
