"""Pictures stand in rows, originals above their counterparts."""

import pytest
from PIL import Image

from ernie_vilg.evaluation.grid import before_and_after, picture_grid


def flat(value: int) -> Image.Image:
    return Image.new("RGB", (2, 2), (value, 0, 0))


def reds(grid: Image.Image, columns: int, rows: int) -> list[list[int]]:
    """The red value of each cell's first pixel, for pictures of 2 x 2 and a gap of 4."""
    return [
        [grid.getpixel((4 + 6 * x, 4 + 6 * y))[0] for x in range(columns)]  # type: ignore[index]
        for y in range(rows)
    ]


def test_pictures_fill_row_after_row() -> None:
    grid = picture_grid([flat(1), flat(2), flat(3)], columns=2)

    assert grid.size == (16, 16)
    assert reds(grid, 2, 2) == [[1, 2], [3, 225]]  # 225: the backdrop


def test_originals_stand_above_their_counterparts() -> None:
    grid = before_and_after([flat(1), flat(2), flat(3)], [flat(11), flat(12), flat(13)], columns=2)

    assert reds(grid, 2, 4) == [[1, 2], [11, 12], [3, 225], [13, 225]]


def test_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="pictures of sizes"):
        picture_grid([flat(1), Image.new("RGB", (3, 2))], columns=2)


def test_few_pairs_leave_no_empty_columns() -> None:
    assert before_and_after([flat(1)], [flat(11)], columns=15).size == (10, 16)
