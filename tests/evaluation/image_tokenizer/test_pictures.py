"""Pictures come in their order, cut at the centre; damaged ones are counted and named."""

from pathlib import Path

import numpy as np
import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.image_tokenizer.pictures import Place, ShardPictures
from tests.evaluation.image_tokenizer.image_shards import write_image_shards


def read(pictures: ShardPictures, batch_size: int = 2) -> tuple[list[np.ndarray], list[Place]]:
    found: list[np.ndarray] = []
    places: list[Place] = []
    for batch in pictures.batches(batch_size, num_threads=2):
        assert len(batch.pixels) == len(batch.places) <= batch_size
        found += list(batch.pixels.permute(0, 2, 3, 1).numpy())
        places += batch.places
    return found, places


def test_pictures_are_in_order_and_cut_at_the_centre(tmp_path: Path) -> None:
    written = write_image_shards(tmp_path / "shards", sizes=(3, 2), side=8)
    pictures = ShardPictures(tmp_path / "shards", image_size=4)

    found, places = read(pictures)

    assert np.array_equal(found, [picture[2:6, 2:6] for picture in written])
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert pictures.count == 5


def test_limit_takes_the_first_pictures(tmp_path: Path) -> None:
    written = write_image_shards(tmp_path / "shards", sizes=(3, 2), side=8)

    found, _ = read(ShardPictures(tmp_path / "shards", image_size=8, limit=4))

    assert np.array_equal(found, written[:4])


def test_damaged_pictures_are_skipped_counted_and_named(tmp_path: Path) -> None:
    written = write_image_shards(tmp_path / "shards", sizes=(3, 3), side=8, damaged=(1, 3))
    pictures = ShardPictures(tmp_path / "shards", image_size=8)

    found, places = read(pictures)

    assert np.array_equal(found, [written[number] for number in (0, 2, 4, 5)])
    assert places == [(0, 0), (0, 2), (1, 1), (1, 2)]
    assert pictures.num_damaged == 2
    assert ["'000001'" in pictures.damaged[0], "'000003'" in pictures.damaged[1]] == [True, True]


def test_pictures_are_found_again_by_their_places(tmp_path: Path) -> None:
    written = write_image_shards(tmp_path / "shards", sizes=(3, 2), side=8)
    pictures = ShardPictures(tmp_path / "shards", image_size=8)

    found, keys = pictures.at([Place(1, 1), Place(0, 2), Place(1, 1)])

    expected = [written[4], written[2], written[4]]
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), expected)
    assert keys == ["000004", "000002", "000004"]


def test_small_pictures_and_a_large_limit_are_refused(tmp_path: Path) -> None:
    write_image_shards(tmp_path / "shards", sizes=(2,), side=8)

    with pytest.raises(InputError, match="8 pixels a side where the image tokenizer takes 16"):
        ShardPictures(tmp_path / "shards", image_size=16)
    with pytest.raises(InputError, match=r"pictures=3 where .* holds 2"):
        ShardPictures(tmp_path / "shards", image_size=8, limit=3)
