"""All captions of a picture are encoded, and each can be read in training."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.captions import read_captions
from data_pipelines.encoding.encode import encode_image_shards
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vocabulary import END_OF_TEXT_ID
from tests.data_pipelines.encoding.image_shards import write_images
from tests.data_pipelines.encoding.test_encode import array_of, config, folder, samples_of

__all__ = ["folder"]  # a fixture

SEVERAL = [["红色", "绿色的圆"], ["黄色"], ["紫色", "黑色", "灰色的三角形"], ["蓝色的大正方形"]]


def test_captions_stand_one_after_another_with_ends_of_text_between(folder: Path) -> None:
    write_images(folder / "images", SEVERAL)

    manifest = encode_image_shards(config(folder))

    encode = TextTokenizer.load(folder / "text").encode
    texts = [array_of(token["text.npy"]) for token in samples_of(folder, "tokens", "token")]
    assert all(text.dtype == np.int32 and text.ndim == 1 for text in texts)
    assert [text.tolist() for text in texts] == [
        [*encode("红色"), END_OF_TEXT_ID, *encode("绿色的圆")],
        encode("黄色"),
        [*encode("紫色"), END_OF_TEXT_ID, *encode("黑色"), END_OF_TEXT_ID, *encode("灰色的三角形")],
        encode("蓝色的大正方形"),
    ]
    lengths = [[len(encode(caption)) for caption in captions] for captions in SEVERAL]
    settings = manifest.settings
    assert settings["captions"] == "all"
    assert settings["num_captions"] == 7
    assert settings["max_captions_per_picture"] == 3
    assert settings["max_text_ids_per_picture"] == max(len(text) for text in texts)
    assert settings["max_text_tokens"] == max(max(of_picture) for of_picture in lengths)
    means = [sum(of_picture) / len(of_picture) for of_picture in lengths]
    assert settings["num_text_tokens"] == round(sum(means))
    assert sum(settings["caption_lengths"].values()) == 7


def test_lines_of_other_shards_are_one_caption(folder: Path) -> None:
    write_images(folder / "images", [["红色", "绿色的圆"]], captions="first")

    manifest = encode_image_shards(config(folder))

    (token,) = samples_of(folder, "tokens", "token")
    tokenizer = TextTokenizer.load(folder / "text")
    assert array_of(token["text.npy"]).tolist() == tokenizer.encode("红色 绿色的圆")
    assert manifest.settings["max_captions_per_picture"] == 1


def test_the_sample_says_where_it_came_from(folder: Path) -> None:
    write_images(folder / "images", SEVERAL)

    encode_image_shards(config(folder))

    for token, captions in zip(samples_of(folder, "tokens", "token"), SEVERAL, strict=True):
        record = json.loads(token["json"])
        assert record["origin"] == {"source": "source", "place": "1"}
        assert record.get("captions", [record["caption"]]) == captions


def test_an_empty_line_is_no_caption(folder: Path) -> None:
    write_images(folder / "images", [["红色", " "]])

    with pytest.raises(
        InputError, match=r"'00000000' of .* has no caption in UTF-8 in its txt, or an"
    ):
        encode_image_shards(config(folder))


def test_a_text_tokenizer_is_trained_on_all_captions(folder: Path) -> None:
    write_images(folder / "images", SEVERAL)
    manifest = read_manifest(folder / "images", "image")

    read = list(read_captions(folder / "images", manifest))

    assert read == [caption for captions in SEVERAL for caption in captions]


def test_codes_are_counted_beside_the_manifest(folder: Path) -> None:
    write_images(folder / "images", SEVERAL)

    encode_image_shards(config(folder))

    codes = [array_of(token["codes.npy"]) for token in samples_of(folder, "tokens", "token")]
    counts = json.loads((folder / "tokens" / "codes.json").read_text())["counts"]
    assert counts == np.bincount(np.stack(codes).ravel(), minlength=16).tolist()
