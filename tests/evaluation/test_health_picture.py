"""The picture of a measurement shows its pairs, in fonts that have the characters."""

import io

import numpy as np
import pytest
from PIL import Image

from ernie_vilg.evaluation.health_picture import (
    MAX_ROWS,
    HealthRow,
    font_for,
    health_picture,
    wrapped,
)


def row(*captions: str) -> HealthRow:
    red, green, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue"))
    first, second, third = captions
    return HealthRow(pictures=(red, green, blue), captions=(first, second, third))


def drawn(rows: list[HealthRow]) -> Image.Image:
    content = health_picture(
        rows,
        title="step 7",
        cosines={"whole model": 0.5, "early_blocks": -0.25},
        likelihoods={"caption": (-1.0, -2.0), "picture": (-3.0, -3.5)},
    )
    return Image.open(io.BytesIO(content)).convert("RGB")


def test_every_picture_of_every_pair_is_on_it_up_to_a_limit() -> None:
    one = drawn([row("a", "b", "c")])
    many = drawn([row("a", "b", "c")] * (MAX_ROWS + 3))

    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        in_one, in_many = (
            int((np.asarray(image) == colour).all(axis=-1).sum()) for image in (one, many)
        )
        assert in_one > 1000  # pixels
        assert in_many == pytest.approx(MAX_ROWS * in_one, rel=0.5)


@pytest.mark.parametrize(
    "caption",
    ["左上角有一个红色的大圆形", "cost: $5 or $x^2$", "\x01\ue123"],
    ids=["Chinese", "formula signs", "characters that no font has"],
)
def test_any_caption_is_drawn_or_left_out(caption: str) -> None:
    drawn([row(caption, "b", "")])  # a missing glyph would be a warning, which is an error here


def test_a_font_that_lacks_a_character_is_not_chosen() -> None:
    assert font_for("plain text") == "DejaVu Sans"
    assert font_for("\ue123") is None


def test_chinese_takes_two_columns_per_character() -> None:
    assert wrapped("a" * 31) == "a" * 30 + "\na"
    assert wrapped("圆" * 16) == "圆" * 15 + "\n圆"
    assert wrapped("a" * 100).count("\n") == 2
