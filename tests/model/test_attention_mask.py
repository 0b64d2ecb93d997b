"""Every target slot sees its whole source and nothing ahead of itself; patterns narrow images."""

import pytest

from ernie_vilg.model.attention_mask import Direction, Pattern, both_masks, pattern_of_block
from tests.model.tiny import tiny_config

T2I, I2T = Direction
GRID = tiny_config(text_length=2, image_grid_size=3, convolution_size=3)


def seen_of_the_image(
    pattern: Pattern, direction: Direction, query: int, row_pattern: str = "raster"
) -> list[str]:
    """Draw the image slots that an image slot sees, row by row."""
    config = tiny_config(
        text_length=2, image_grid_size=3, convolution_size=3, row_pattern=row_pattern
    )
    row = both_masks(config, pattern)[direction, 2 + query, 2:].view(3, 3)
    return ["".join("#" if seen else "." for seen in line) for line in row.tolist()]


def test_text_to_image_with_two_text_and_four_image_slots() -> None:
    mask = both_masks(tiny_config(text_length=2))[T2I]

    assert mask.int().tolist() == [  # key: text, text, image, image, image, image
        [1, 1, 0, 0, 0, 0],  # first text slot
        [1, 1, 0, 0, 0, 0],  # second text slot
        [1, 1, 1, 0, 0, 0],  # first image slot
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]


def test_image_to_text_with_two_text_and_four_image_slots() -> None:
    mask = both_masks(tiny_config(text_length=2))[I2T]

    assert mask.int().tolist() == [  # key: text, text, image, image, image, image
        [1, 0, 1, 1, 1, 1],  # first text slot
        [1, 1, 1, 1, 1, 1],  # second text slot
        [0, 0, 1, 1, 1, 1],  # first image slot
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
    ]


def test_row_reaches_the_slot_above_in_text_to_image() -> None:
    assert seen_of_the_image(Pattern.ROW, T2I, 4) == [".##", "##.", "..."]


def test_block_row_stays_in_its_row() -> None:
    assert seen_of_the_image(Pattern.ROW, T2I, 4, "block") == ["...", "##.", "..."]


def test_row_is_the_whole_row_in_image_to_text() -> None:
    assert seen_of_the_image(Pattern.ROW, I2T, 4) == ["...", "###", "..."]


def test_column_looks_up_in_text_to_image() -> None:
    assert seen_of_the_image(Pattern.COLUMN, T2I, 4) == [".#.", ".#.", "..."]


def test_column_is_the_whole_column_in_image_to_text() -> None:
    assert seen_of_the_image(Pattern.COLUMN, I2T, 4) == [".#.", ".#.", ".#."]


def test_convolution_is_the_square_before_the_query_in_text_to_image() -> None:
    assert seen_of_the_image(Pattern.CONVOLUTION, T2I, 4) == ["###", "##.", "..."]
    assert seen_of_the_image(Pattern.CONVOLUTION, T2I, 8) == ["...", ".##", ".##"]


def test_convolution_is_the_square_around_the_query_in_image_to_text() -> None:
    assert seen_of_the_image(Pattern.CONVOLUTION, I2T, 0) == ["##.", "##.", "..."]


@pytest.mark.parametrize("pattern", Pattern)
def test_text_sees_and_is_seen_alike_in_every_pattern(pattern: Pattern) -> None:
    masks, full = both_masks(GRID, pattern), both_masks(GRID)

    assert masks[:, :2].equal(full[:, :2])
    assert masks[:, :, :2].equal(full[:, :, :2])


@pytest.mark.parametrize("pattern", Pattern)
def test_patterns_only_narrow(pattern: Pattern) -> None:
    assert not (both_masks(GRID, pattern) & ~both_masks(GRID)).any()


def test_48_layers_have_12_columns_35_rows_and_a_convolution_at_the_end() -> None:
    config = tiny_config(num_layers=48, attention="sparse")

    patterns = [pattern_of_block(config, index) for index in range(1, 49)]

    counts = {pattern: patterns.count(pattern) for pattern in set(patterns)}
    assert counts == {Pattern.COLUMN: 12, Pattern.ROW: 35, Pattern.CONVOLUTION: 1}
    assert patterns[-1] is Pattern.CONVOLUTION
    assert patterns[1] is Pattern.COLUMN
