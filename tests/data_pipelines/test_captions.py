"""Training of a text tokenizer reads captions in order."""

from pathlib import Path

import pytest

from data_pipelines.captions import (
    captions_of,
    clean_caption,
    clean_text,
    read_captions,
    text_of,
)
from data_pipelines.rejections import RejectedError
from data_pipelines.shard_writer import write_shard
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.storage.shard_manifest import Manifest


def test_captions_of_others_are_cleaned_as_ours_are(tmp_path: Path) -> None:
    captions = ("红\u200b色\u202e\n", " 绿 \u2581\u3000圆", "蓝\u2585")
    samples = (
        {"__key__": str(index).encode(), "txt": caption.encode()}
        for index, caption in enumerate(captions)
    )
    shard = write_shard(tmp_path / "images-00000.tar", samples, members=("txt",))
    assert shard is not None
    manifest = Manifest(kind="image", shards=(shard,), settings={}, lineage={})

    read = list(read_captions(tmp_path, manifest))

    assert read == ["红色", "绿 圆", "蓝\u2585"]


@pytest.mark.parametrize("members", [{}, {"txt": b"\xff"}], ids=["missing", "not UTF-8"])
def test_a_sample_without_a_caption_is_named(members: dict[str, bytes]) -> None:
    with pytest.raises(
        DamagedSampleError, match=r"sample 'a' of b\.tar has no caption in UTF-8 in its txt"
    ):
        captions_of({"__key__": b"a", **members}, "b.tar", is_several=False)


def test_only_a_question_and_its_answer_keep_the_character_between_them() -> None:
    text = text_of("两只\u241f。", " 几只\u241f猫？\u200b ")

    assert clean_text(text, max_characters=20) == "几只 猫？\u241f两只 。"
    assert (
        text_of("两只\u241f猫", None)
        == clean_caption("两只\u241f猫", max_characters=9)
        == "两只 猫"
    )


@pytest.mark.parametrize(
    "text", ["\u241f两只。", "几只？\u241f \u200b", "几只猫在这里？\u241f两只。"],
    ids=["no question", "no answer", "too long"],
)  # fmt: skip
def test_a_question_without_an_answer_is_rejected(text: str) -> None:
    with pytest.raises(RejectedError):
        clean_text(text, max_characters=8)


def test_a_text_tokenizer_sees_question_and_answer_as_two_texts(tmp_path: Path) -> None:
    samples = iter(
        [{"__key__": b"0", "txt": "几只猫？\u241f两只。\n在哪里？\u241f家里。".encode()}]
    )
    shard = write_shard(tmp_path / "images-00000.tar", samples, members=("txt",))
    assert shard is not None
    manifest = Manifest(kind="image", shards=(shard,), settings={"captions": "all"}, lineage={})

    read = list(read_captions(tmp_path, manifest))

    assert read == ["几只猫？", "两只。", "在哪里？", "家里。"]
