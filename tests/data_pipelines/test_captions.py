"""Training of a text tokenizer reads captions in order."""

from pathlib import Path

import pytest

from data_pipelines.captions import captions_of, read_captions
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
