"""Training of a text tokenizer reads captions in order or at even distances."""

from pathlib import Path

import pytest

from data_pipelines.captions import caption_of, clean_caption, is_taken, read_captions
from data_pipelines.rejections import RejectedError
from data_pipelines.shard_writer import write_shard
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.storage.shard_manifest import Manifest


@pytest.mark.parametrize(
    ("wanted", "total", "positions"),
    [
        pytest.param(3, 3, [0, 1, 2], id="all"),
        pytest.param(9, 3, [0, 1, 2], id="more than there are"),
        pytest.param(2, 6, [2, 5], id="every third"),
        pytest.param(3, 7, [2, 4, 6], id="uneven distances"),
        pytest.param(1, 5, [4], id="one"),
    ],
)
def test_captions_are_taken_at_even_distances(
    wanted: int, total: int, positions: list[int]
) -> None:
    taken = [index for index in range(total) if is_taken(index, wanted=wanted, total=total)]

    assert taken == positions


def test_captions_of_others_are_cleaned_as_ours_are(tmp_path: Path) -> None:
    captions = ("红\u200b色\u202e\n", " 绿 \u2581\u3000圆", "蓝\u2585")
    samples = (
        {"__key__": str(index).encode(), "txt": caption.encode()}
        for index, caption in enumerate(captions)
    )
    shard = write_shard(tmp_path / "images-00000.tar", samples, members=("txt",))
    assert shard is not None
    manifest = Manifest(kind="image", shards=(shard,), settings={}, lineage={})

    read = list(read_captions(tmp_path, manifest, max_captions=None))

    assert read == ["红色", "绿 圆", "蓝\u2585"]


@pytest.mark.parametrize("members", [{}, {"txt": b"\xff"}], ids=["missing", "not UTF-8"])
def test_a_sample_without_a_caption_is_named(members: dict[str, bytes]) -> None:
    with pytest.raises(
        DamagedSampleError, match=r"sample 'a' of b\.tar has no caption in UTF-8 in its txt"
    ):
        caption_of({"__key__": b"a", **members}, "b.tar")


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        pytest.param("a\tb\r\nc", "a b c", id="white space becomes one space"),
        pytest.param("a \u200b b", "a b", id="zero-width space between spaces"),
        pytest.param("\u202eabc\u202c", "abc", id="direction overrides are removed"),
        pytest.param("a\x00\x1b[31mb", "a[31mb", id="control characters are removed"),
        pytest.param("\u3000红\u3000", "红", id="ideographic space"),
        pytest.param("👩\u200d🚀", "👩\u200d🚀", id="a joiner within an emoji stays"),
        pytest.param("红，(辣)：椒", "红，(辣)：椒", id="marks stay"),
        pytest.param("a\u2581b", "a b", id="the space of SentencePiece"),
        pytest.param("a\u2585b", "a\u2585b", id="another block"),
    ],
)
def test_captions_are_cleaned(caption: str, cleaned: str) -> None:
    assert clean_caption(caption, max_characters=100) == cleaned


def test_a_caption_of_joiners_alone_is_empty() -> None:
    with pytest.raises(RejectedError):
        clean_caption("\u200d \u200c", max_characters=100)
