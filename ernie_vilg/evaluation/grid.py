"""Many small pictures as one."""

import math
from collections.abc import Sequence

from PIL import Image

from ernie_vilg.errors import InputError

SAMPLE_COLUMNS = 8
"""Pairs per row in the samples of a run."""

_GAP = 4
_BACKDROP = (225, 228, 232)  # light grey: the edge of a white picture stays visible


def picture_grid(images: Sequence[Image.Image], *, columns: int, gap: int = _GAP) -> Image.Image:
    """Lay pictures out in rows.

    Args:
        images: pictures of one size, at least one.
        columns: pictures per row.
        gap: pixels between pictures and around them.

    Raises:
        InputError: there is no picture, or the sizes differ.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise InputError(f"pictures of sizes {sorted(sizes)}: a grid needs one size, and a picture")
    ((width, height),) = sizes
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    grid = Image.new("RGB", size, _BACKDROP)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        grid.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return grid


def before_and_after(
    before: Sequence[Image.Image], after: Sequence[Image.Image], *, columns: int
) -> Image.Image:
    """Lay pairs of pictures out in rows, each row of originals above its counterparts.

    Args:
        before: pictures.
        after: as many of the same size.
        columns: pairs per row.
    """
    columns = min(columns, len(before))
    rows: list[Image.Image] = []
    for start in range(0, len(before), columns):
        rows += before[start : start + columns]
        missing = columns - len(before[start : start + columns])
        filler = [Image.new("RGB", before[0].size, _BACKDROP)] * missing
        rows += [*filler, *after[start : start + columns], *filler]
    return picture_grid(rows, columns=columns)


def first_row_of_pairs(
    grid: Image.Image, num_pairs: int, *, columns: int
) -> tuple[Image.Image, Image.Image] | None:
    """Cut the first row of originals, and that of their counterparts, out of `before_and_after`.

    Args:
        grid: grid of square pictures.
        num_pairs: number of pairs in it, at least one.
        columns: pairs per row.

    Returns:
        both rows; None if the grid has other rows than so many square pairs fill.
    """
    columns = min(columns, num_pairs)
    cell, rest = divmod(grid.width - _GAP, columns)
    if rest or grid.height != 2 * math.ceil(num_pairs / columns) * cell + _GAP:
        return None
    before, after = (grid.crop((0, top, grid.width, top + cell + _GAP)) for top in (0, cell))
    return before, after
