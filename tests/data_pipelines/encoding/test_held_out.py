"""Samples that were held out are encoded too, into a folder of their own."""

import logging
from pathlib import Path

import pytest

from data_pipelines.encoding.encode import encode_image_shards, encode_part
from ernie_vilg.storage.shard_manifest import read_manifest
from tests.data_pipelines.encoding.image_shards import write_images
from tests.data_pipelines.encoding.test_encode import config, folder, samples_of
from tests.data_pipelines.encoding.test_reuse import SEVERAL, files_of

__all__ = ["folder"]  # a fixture


@pytest.fixture
def split(folder: Path) -> Path:
    """Return the folder with 4 pictures in the image shards, and 2 held out, 12 pixels a side."""
    write_images(folder / "images", SEVERAL, size=12)
    held_out = folder / "images" / "held_out"
    write_images(held_out, [["红色"], ["黑色"]], size=12, first_number=50)
    return folder


def test_held_out_samples_have_a_manifest_and_one_view(
    split: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    manifest = encode_image_shards(config(split, views=2, horizontal_flip=True))

    assert manifest.num_samples == 8
    held_out = read_manifest(split / "tokens" / "held_out", "token")
    assert (held_out.num_samples, held_out.settings["views"]) == (2, 1)
    assert held_out.settings["cuts"] == {"from": 12, "horizontal_flip": False}
    assert (
        held_out.lineage["image_shards"]
        == read_manifest(split / "images" / "held_out", "image").digest()
    )
    keys = [token["__key__"] for token in samples_of(split, "tokens/held_out", "token")]
    assert keys == [b"00000050", b"00000051"]
    assert "images/held_out is encoded too, to " in caplog.text


def test_parts_share_held_out_shards_too(split: Path) -> None:
    encode_image_shards(config(split, "whole"))

    # Shards of 3 and 1 pictures, and one of 2 that are held out.
    assert [encode_part(config(split, num_parts=2, part_index=index)) for index in (0, 1)] == [2, 1]
    encode_image_shards(config(split))

    assert files_of(split / "tokens") == files_of(split / "whole")


def test_an_empty_split_gives_no_shards(split: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(split / "images" / "held_out", [])

    encode_image_shards(config(split))

    assert "held_out holds no samples" in caplog.text
    assert not (split / "tokens" / "held_out").exists()
