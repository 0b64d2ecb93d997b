import hashlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.duplicates.content_hashes import (
    normalise_text,
    sha256_of_pixels,
    sha256_of_text,
)


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("一只 猫。", "一只猫"),
        ("Ａ Red  CAR!", "a red car"),
        ("a 猫 b", "a猫b"),
        ("3.5 cm", "3 5 cm"),
        ("35 cm", "35 cm"),
        ("C++", "c++"),
        ("笑脸😀", "笑脸😀"),
        ("!?", "!?"),
        ("\uff01", "!"),
    ],
    ids=[
        "punctuation and spaces beside Chinese characters",
        "width and case",
        "spaces beside Chinese characters on one side",
        "a point separates digits",
        "digits together",
        "symbols stay",
        "emoji stay",
        "punctuation alone stays",
        "punctuation alone is normalised",
    ],
)
def test_normalised_text(caption: str, text: str) -> None:
    assert normalise_text(caption) == text


def test_hash_of_text_is_that_of_the_normalised_text() -> None:
    assert sha256_of_text("一只 猫。") == hashlib.sha256("一只猫".encode()).hexdigest()


def test_hash_of_pixels_tells_pictures_with_the_same_bytes_apart_by_their_size() -> None:
    pixels = np.arange(36, dtype=np.uint8)
    wide = Image.fromarray(pixels.reshape(2, 6, 3))
    high = Image.fromarray(pixels.reshape(6, 2, 3))

    assert sha256_of_pixels(wide) == hashlib.sha256(b"6x2\n" + pixels.tobytes()).hexdigest()
    assert sha256_of_pixels(high) == hashlib.sha256(b"2x6\n" + pixels.tobytes()).hexdigest()
