"""Tiles show a code's square in the middle of its surroundings."""

import numpy as np
from PIL import Image

from ernie_vilg.evaluation.image_tokenizer.page import PATCHES, code_tiles


def numbered(cells: int, factor: int) -> Image.Image:
    """Return a picture whose squares have their number as brightness."""
    numbers = np.arange(cells * cells, dtype=np.uint8).reshape(cells, cells)
    pixels = numbers.repeat(factor, axis=0).repeat(factor, axis=1)
    return Image.fromarray(np.stack([pixels] * 3, axis=2))


def squares(tile: Image.Image) -> list[list[int]]:
    """Return the brightness of the 3 x 3 squares of a tile."""
    at = [tile.width * part // 6 for part in (1, 3, 5)]
    return [[tile.getpixel((x, y))[0] for x in at] for y in at]  # type: ignore[index]


def test_tiles_are_the_code_alone_its_surroundings_and_empty_ones() -> None:
    picture = numbered(5, factor=4)

    alone, inside, corner, *empty = code_tiles(picture, [picture] * 2, [(1, 2), (4, 0)], factor=4)

    assert squares(alone) == [[6, 7, 8], [11, 12, 13], [16, 17, 18]]
    assert squares(inside) == [[1, 2, 3], [6, 7, 8], [11, 12, 13]]
    assert squares(corner) == [[10, 11, 12], [15, 16, 17], [20, 21, 22]]  # shifted inside
    assert len(empty) == PATCHES - 2
    assert all(squares(tile) == [[255] * 3] * 3 for tile in empty)


def test_pictures_of_one_square_are_shown_whole() -> None:
    tiles = code_tiles(numbered(1, 8), [numbered(1, 8)], [(0, 0)], factor=8)

    assert {tile.size for tile in tiles} == {(72, 72)}
