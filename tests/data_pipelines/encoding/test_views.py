"""Views cut larger pictures: the centre first, then places that seed, key and view draw."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.encoding.encode import encode_image_shards
from data_pipelines.encoding.views import ViewSettings
from ernie_vilg.errors import InputError
from ernie_vilg.vqgan.pixels import from_pictures
from ernie_vilg.vqgan.weights import load_image_tokenizer
from tests.data_pipelines.encoding.image_shards import write_images
from tests.data_pipelines.encoding.test_encode import array_of, config, folder, samples_of

__all__ = ["folder"]  # a fixture

CAPTIONS = [["红色"], ["黄色"], ["紫色"], ["黑色"]]


def views(count: int = 4, *, flip: bool = False, source: int = 12, seed: int = 0) -> ViewSettings:
    return ViewSettings(
        count=count, horizontal_flip=flip, seed=seed, source_size=source, image_size=8
    )


def test_the_first_view_is_the_centre() -> None:
    image = Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))

    view = views().cut(image, "00000001", 0)

    assert (np.asarray(view) == np.asarray(image)[2:10, 2:10]).all()


def test_every_place_is_drawn_equally_often() -> None:
    places = Counter(views().place(f"{key:08d}", 1) for key in range(25_000))

    assert set(places) == {(left, top) for left in range(5) for top in range(5)}
    assert max(abs(count - 1000) for count in places.values()) < 130  # 4 standard deviations


def test_key_view_and_seed_draw_each_anew() -> None:
    keys = [f"{key:08d}" for key in range(200)]
    places = [[views(seed=seed).place(key, view) for key in keys] for seed, view in
              ((0, 1), (0, 2), (1, 1))]  # fmt: skip

    for first, second in ((0, 1), (0, 2), (1, 2)):
        same = sum(a == b for a, b in zip(places[first], places[second], strict=True))
        assert same < 30  # one of 25 places by chance: 8


def test_views_follow_one_another_and_each_is_the_cut_of_its_picture(folder: Path) -> None:
    write_images(folder / "images", CAPTIONS, size=12)

    manifest = encode_image_shards(
        config(folder, views=2, horizontal_flip=True, keep_pixels=True, seed=7)
    )

    assert [shard.samples for shard in manifest.shards] == [3, 3, 1, 1]
    assert manifest.settings["views"] == 2
    assert manifest.settings["cuts"] == {"from": 12, "horizontal_flip": True, "seed": 7}
    images = samples_of(folder, "images", "image")
    tokens = samples_of(folder, "tokens", "token")
    pairs = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]
    vqgan, _ = load_image_tokenizer(folder / "vqgan")
    for (number, view), token in zip(pairs, tokens, strict=True):
        image = Image.open(io.BytesIO(images[number]["png"]))
        key = images[number]["__key__"].decode()
        left, top = views(2, flip=True, seed=7).place(key, view)
        pixels = np.asarray(image)[top : top + 8, left : left + 8]
        pixels = pixels[:, ::-1] if view == 1 else pixels
        assert token["__key__"] == images[number]["__key__"]
        assert (np.asarray(Image.open(io.BytesIO(token["png"]))) == pixels).all()
        codes = vqgan.encode(from_pictures([Image.fromarray(pixels)]))[0]
        assert array_of(token["codes.npy"]).tolist() == codes.tolist()


def test_cut_shards_are_of_another_lineage(folder: Path) -> None:
    write_images(folder / "images", CAPTIONS, size=12)

    hashes = [
        encode_image_shards(config(folder, name, **settings)).lineage["crop_settings"]
        for name, settings in (
            ("centre", {}),
            ("two", {"views": 2}),
            ("seed", {"views": 2, "seed": 1}),
        )
    ]

    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": 2}, "views=2 of pictures of 8 pixels.*set views=1, or set horizontal_flip=true"),
        ({"views": 3, "horizontal_flip": True}, "views=3 of pictures of 8 pixels.*set views=1"),
        ({"horizontal_flip": True}, "horizontal_flip=true with views=1"),
    ],
)
def test_equal_views_are_refused(folder: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_image_shards(config(folder, **settings))
