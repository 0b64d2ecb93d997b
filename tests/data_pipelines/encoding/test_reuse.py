"""A new text tokenizer takes the codes of earlier token shards, byte for byte."""

from pathlib import Path
from typing import Any

import pytest

from data_pipelines.encoding import token_shard
from data_pipelines.encoding.encode import encode_image_shards
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.text_tokenizer import train_text_tokenizer, write_text_tokenizer
from ernie_vilg.vqgan.weights import save_image_tokenizer
from tests.data_pipelines.encoding.image_shards import write_images
from tests.data_pipelines.encoding.test_encode import CAPTIONS, config, folder, tiny_vqgan

__all__ = ["folder"]  # a fixture

SEVERAL = [["红色", "绿色的圆"], ["黄色"], ["紫色", "黑色", "灰色的三角形"], ["蓝色的大正方形"]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def replace_text_tokenizer(folder: Path) -> None:
    settings = TrainTextTokenizerConfig(
        shards="unused", output_dir="unused", vocab_size=290, model_type="bpe"
    )
    write_text_tokenizer(folder / "text", train_text_tokenizer(CAPTIONS * 9, settings), {})


def refuse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a picture or the encoder was used")

    for name in ("fetch_picture", "load_frozen_vqgan", "start_encoding"):
        monkeypatch.setattr(token_shard, name, refuse)


@pytest.mark.parametrize(
    "settings",
    [{}, {"keep_pixels": True, "views": 2}],
    ids=["codes", "codes and pictures of views"],
)
def test_codes_taken_over_give_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    write_images(folder / "images", SEVERAL, size=12)
    write_images(folder / "images" / "held_out", [["黑色"]], size=12, first_number=50)
    encode_image_shards(config(folder, "old", **settings))
    replace_text_tokenizer(folder)
    encode_image_shards(config(folder, "scratch", **settings))
    refuse_pictures(monkeypatch)

    encode_image_shards(config(folder, "reused", codes_from=str(folder / "old"), **settings))

    scratch = files_of(folder / "scratch")
    assert files_of(folder / "reused") == scratch
    assert "held_out/tokens-00000.tar" in scratch
    assert files_of(folder / "old") != scratch


def flip_caption(folder: Path) -> None:
    """Change a character of a caption in the tar, as a failing disk might."""
    path = folder / "images" / "images-00000.tar"
    content = path.read_bytes()
    # The txt alone: the JSON's caption stands between quotes.
    place = content.index("\0黄色\0".encode()) + 1
    path.write_bytes(content[:place] + "红".encode() + content[place + 3 :])


def test_a_damaged_caption_is_noticed(folder: Path) -> None:
    write_images(folder / "images", SEVERAL)
    encode_image_shards(config(folder, "old"))
    flip_caption(folder)

    with pytest.raises(InputError, match=r"images-00000\.tar differs from the manifest's SHA-256"):
        encode_image_shards(config(folder, codes_from=str(folder / "old")))


def test_captions_that_the_json_does_not_hold_are_read_after_a_check(folder: Path) -> None:
    write_images(folder / "images", SEVERAL, captions="first")  # several lines, one caption
    encode_image_shards(config(folder, "old"))

    encode_image_shards(config(folder, codes_from=str(folder / "old")))

    assert files_of(folder / "tokens") == files_of(folder / "old")


def other_tokenizer(folder: Path) -> dict[str, Any]:
    save_image_tokenizer(tiny_vqgan(8, seed=1), folder / "vqgan")
    return {}


def other_images(folder: Path) -> dict[str, Any]:
    write_images(folder / "images", SEVERAL[:3])
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_tokenizer, "has image_tokenizer=[0-9a-f]{64}, and [0-9a-f]{64} is asked for"),
        (other_images, "has image_shards=[0-9a-f]{64}, and [0-9a-f]{64} is asked for"),
        (lambda _: {"keep_pixels": True}, "has pixels=False, and True is asked for"),
        (lambda _: {"precision": "bf16"}, "has precision=fp32, and bf16 is asked for"),
    ],
    ids=["image tokenizer", "image shards", "pixels", "precision"],
)
def test_codes_of_something_else_are_refused(folder: Path, change: Any, message: str) -> None:
    write_images(folder / "images", SEVERAL)
    encode_image_shards(config(folder, "old"))

    with pytest.raises(InputError, match=message):
        encode_image_shards(config(folder, codes_from=str(folder / "old"), **change(folder)))
    assert read_manifest(folder / "old", "token").num_samples == 4
