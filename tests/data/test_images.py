"""Every rank decodes its own share of the same batches."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ernie_vilg.data.images import ImageBatches, decode_picture
from ernie_vilg.data.order import SampleOrder
from ernie_vilg.manifest import Manifest, describe_shard

SIZE = 8


def png(value: int, size: int = SIZE) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, Manifest]:
    """Two shards of six pictures; picture k is red k throughout."""
    entries = []
    for shard_index in range(2):
        path = tmp_path / f"images-{shard_index:05d}.tar"
        with tarfile.open(path, "w") as archive:
            for index in range(6 * shard_index, 6 * shard_index + 6):
                member = tarfile.TarInfo(f"{index:06d}.png")
                content = png(index)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        entries.append(describe_shard(path, samples=6, members=("png",)))
    manifest = Manifest(
        kind="image", shards=tuple(entries), settings={"image_size": SIZE}, lineage={}
    )
    return tmp_path, manifest


def batches(
    shards: tuple[Path, Manifest], *, rank: int = 0, world_size: int = 1, cache_bytes: int = 0
) -> ImageBatches:
    folder, manifest = shards
    return ImageBatches(
        folder,
        manifest,
        order=SampleOrder(manifest, seed=3),
        global_batch_size=4,
        rank=rank,
        world_size=world_size,
        cache_bytes=cache_bytes,
    )


def names(pictures: np.ndarray) -> list[int]:
    assert pictures.dtype == np.uint8
    return pictures[:, 0, 0, 0].tolist()


def test_an_epoch_holds_every_picture_once(shards: tuple[Path, Manifest]) -> None:
    reader = batches(shards)

    seen = [name for step in range(3) for name in names(reader.at(step))]

    assert sorted(seen) == list(range(12))


def test_shares_of_two_ranks_side_by_side_are_the_batch_of_one(
    shards: tuple[Path, Manifest],
) -> None:
    for step in range(4):
        shares = [names(batches(shards, rank=rank, world_size=2).at(step)) for rank in range(2)]

        assert shares[0] + shares[1] == names(batches(shards).at(step))


@pytest.mark.parametrize(
    "cache_bytes",
    [
        pytest.param(0, id="nothing is kept"),
        pytest.param(5 * 3 * SIZE * SIZE, id="some are kept"),
        pytest.param(1 << 20, id="all are kept"),
    ],
)
def test_cache_changes_no_batch(shards: tuple[Path, Manifest], cache_bytes: int) -> None:
    cached, plain = batches(shards, cache_bytes=cache_bytes), batches(shards)

    for step in range(7):  # into the third epoch
        assert np.array_equal(cached.at(step), plain.at(step))


def test_cache_holds_no_more_than_its_bytes(shards: tuple[Path, Manifest]) -> None:
    picture_bytes = 3 * SIZE * SIZE
    reader = batches(shards, cache_bytes=5 * picture_bytes + 1)

    reader.between(0, 12)

    assert len(reader._cache) == 5


def test_channels_come_first() -> None:
    picture = decode_picture({"__key__": b"a", "png": png(7)}, SIZE)

    assert picture.shape == (3, SIZE, SIZE)
    assert picture[:, 2, 5].tolist() == [7, 0, 255]


def test_picture_of_another_size_is_named() -> None:
    with pytest.raises(ValueError, match="sample 'a' has 9 x 9 pixels where the manifest says 8 x"):
        decode_picture({"__key__": b"a", "png": png(7, size=9)}, SIZE)


def test_sample_without_a_picture_is_named() -> None:
    with pytest.raises(ValueError, match="sample 'a' has no png or jpg"):
        decode_picture({"__key__": b"a", "txt": b"x"}, SIZE)
