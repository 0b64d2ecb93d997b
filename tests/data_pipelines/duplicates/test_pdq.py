import numpy as np
import pytest
from PIL import Image

from data_pipelines.duplicates import pdq
from data_pipelines.duplicates.pdq import (
    hamming_distances,
    hash_of_hex,
    hex_of_hash,
    pdq_hash,
)
from tests.data_pipelines.duplicates.pdq_pictures import pictures, stored_hashes


def test_hashes_equal_those_of_pdqhash() -> None:
    found = {}
    for name, image in pictures().items():
        words, quality = pdq_hash(image)
        found[name] = (hex_of_hash(words), quality)

    assert found == stored_hashes()


def test_hash_of_a_picture_read_in_strips_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdq, "_PIXELS_AT_ONCE", 1000)
    stored = stored_hashes()

    for name, image in pictures().items():
        assert hex_of_hash(pdq_hash(image)[0]) == stored[name][0]


@pytest.mark.parametrize("size", [(40, 30), (640, 480)], ids=["selected", "blurred"])
def test_picture_of_one_colour_has_neither_bits_nor_quality(size: tuple[int, int]) -> None:
    words, quality = pdq_hash(Image.new("RGB", size, (200, 31, 77)))

    assert words.tolist() == [0, 0, 0, 0]
    assert quality == 0


def test_picture_with_a_side_below_five_pixels_has_no_hash() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(4, 90, 3), dtype=np.uint8)

    words, quality = pdq_hash(Image.fromarray(pixels))

    assert words.tolist() == [0, 0, 0, 0]
    assert quality == 0


def test_resized_picture_is_near_and_another_one_is_far() -> None:
    all_pictures = pictures()
    original, _ = pdq_hash(all_pictures["blocks-640x480"])
    resized, _ = pdq_hash(all_pictures["blocks-640x480"].resize((200, 150)))
    other, _ = pdq_hash(all_pictures["grain-640x480"])

    assert hamming_distances(original, resized) <= 31
    assert hamming_distances(original, other) > 80


def test_distance_counts_the_differing_bits_of_all_words() -> None:
    one = np.array([[0, 0, 0, 0], [1, 3, 7, 1 << 63]], dtype=np.uint64)
    other = np.array([[2**64 - 1] * 4, [0, 0, 0, 0]], dtype=np.uint64)

    assert hamming_distances(one, other).tolist() == [256, 1 + 2 + 3 + 1]


def test_first_digit_holds_the_most_significant_bits() -> None:
    words = np.array([1 << 63, 0, 0, 10], dtype=np.uint64)

    assert hex_of_hash(words) == "8" + 62 * "0" + "a"
    assert hash_of_hex("8" + 62 * "0" + "a").tolist() == words.tolist()
