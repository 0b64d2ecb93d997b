"""Judge of pictures of the built-in data, by their pixels alone.

No token, no model and no renderer takes part. In each quadrant the judge

1. takes as foreground what differs from the picture's background, its light pixels' median;
2. reads the colour from the middle of the foreground, where no edge mixes it;
3. measures each pixel's coverage, from background to colour, and takes area and centroid from it;
4. lays every shape of this area and centroid over it, at every rotation, and takes the shape whose
   coverage differs least.

An outline may be off by `OUTLINE_LIMIT` pixels in the mean, wherever the object lies within the
limits of the widest variety. What exceeds a limit is no object: half a circle has no shape, an
object of two colours no colour.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ernie_vilg.errors import InputError
from ernie_vilg.shapes.distance import signed_distance
from ernie_vilg.shapes.outlines import CIRCLE, corners_of
from ernie_vilg.shapes.scenes import (
    COLOURS,
    IMAGE_SIZE,
    QUADRANTS,
    SHAPES,
    TILE_SIZE,
    SceneObject,
)

OUTLINE_LIMIT = 0.75
"""Largest mean distance of an outline from that of its shape, pixels."""
AREA_LIMIT = 0.38
"""Largest area, of an object's own, that it covers too much and too little. It decides for small
stars, whose outline is long."""
COLOUR_LIMIT = 60.0
"""Largest distance of a colour from the named one, and of a pixel from its object's colours, in RGB
of 0 to 255."""
IMPURE_LIMIT = 0.15
"""Largest fraction of an object's pixels that may have another colour."""
SIZE_BORDER = 10.0
"""Radius between small and large, pixels."""
RADIUS_LIMITS = (5.5, 15.5)
"""Smallest and largest radius of an object, pixels."""
CENTRE_LIMIT = 6.5
"""Largest distance of an object's centre from its quadrant's along x and along y, pixels."""

_LIGHT = 190  # every channel of a background is at least this
_FOREGROUND = 60.0  # distance from the background
_FEWEST_PIXELS = 24  # of an object; half of the smallest star
_RIM = 2  # what a neighbour may cover of a quadrant without being seen as an object of it
_EDGE_WIDTH = 0.6  # of the coverages that are compared, pixels
_ROTATIONS = tuple(range(-15, 16, 5))  # degrees
_CELLS_PER_RADIUS = 48  # of the tables of distances
_TABLE_REACH = 2.0  # radii; farther points are outside by as much as those at the rim


@dataclass(frozen=True, kw_only=True)
class ObjectReading:
    """Reading of a quadrant that is not blank."""

    shape: str | None
    """Member of `SHAPES`; None if the outline is that of no shape, or a limit is exceeded."""
    size: str | None
    """Member of `SIZES`; None without a shape."""
    colour: str | None
    """Key of `COLOURS`; None if it is none of them, or several."""
    quadrant: str
    """Key of `QUADRANTS`."""

    def shows(self, item: SceneObject) -> bool:
        """Return whether this is an object, right in everything."""
        return (self.shape, self.size, self.colour, self.quadrant) == (
            item.shape, item.size, item.colour, item.quadrant,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Template:
    """A shape of radius 1 at one rotation, about its centroid."""

    shape: str
    """Member of `SHAPES`."""
    table: NDArray[np.float32]
    """Signed distances by cell, [down, across]."""
    area: float
    """Area."""
    perimeter: float
    """Length of the outline."""
    centroid: tuple[float, float]
    """Centroid (x, y) from the centre."""


def read_objects(image: Image.Image) -> dict[str, ObjectReading]:
    """Return what each quadrant that is not blank shows.

    Args:
        image: a picture of 64 x 64 pixels, of any mode that converts to RGB.

    Raises:
        InputError: the picture has another size.
    """
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        raise InputError(
            f"a picture of {image.size[0]} x {image.size[1]} pixels: scenes of the built-in data "
            f"have {IMAGE_SIZE} x {IMAGE_SIZE}; judge other pictures with judge=none"
        )
    pixels = np.asarray(image.convert("RGB"), np.float32)
    background = _background(pixels)
    found = {}
    for quadrant, (x, y) in QUADRANTS.items():
        left, top = x - TILE_SIZE // 2, y - TILE_SIZE // 2
        tile = pixels[top : top + TILE_SIZE, left : left + TILE_SIZE]
        foreground = _length(tile - background) > _FOREGROUND
        if _without_rim(foreground, left, top).sum() >= _FEWEST_PIXELS:
            found[quadrant] = _read(tile, background, quadrant)
    return found


def _background(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the median of the light pixels, white if there are none: then all is foreground."""
    light = pixels[pixels.min(axis=2) >= _LIGHT]
    if not len(light):
        return np.full(3, 255, np.float32)
    return np.asarray(np.median(light, axis=0), np.float32)


def _without_rim(foreground: NDArray[np.bool_], left: int, top: int) -> NDArray[np.bool_]:
    """Return the foreground without the rim along the neighbouring quadrants."""
    rows = slice(_RIM, None) if top else slice(None, -_RIM)
    columns = slice(_RIM, None) if left else slice(None, -_RIM)
    return foreground[rows, columns]


def _read(
    tile: NDArray[np.float32], background: NDArray[np.float32], quadrant: str
) -> ObjectReading:
    contrast = _length(tile - background)
    foreground = contrast > _FOREGROUND
    own = _own_colour(tile, foreground, contrast)
    coverage, residual = _coverage(tile, background, own)
    impure = float((residual[foreground] > COLOUR_LIMIT).mean())
    shape, size = _shape_and_size(coverage)
    return ObjectReading(
        shape=shape,
        size=size,
        colour=_name_of(own) if impure <= IMPURE_LIMIT else None,
        quadrant=quadrant,
    )


def _own_colour(
    tile: NDArray[np.float32], foreground: NDArray[np.bool_], contrast: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the median colour of the middle of the foreground, float32 [3].

    The middle is the half, farther from the background in colour, of the pixels with foreground on
    all four sides: a blurred edge reaches far into a small star.
    """
    core = foreground.copy()
    core[1:] &= foreground[:-1]
    core[:-1] &= foreground[1:]
    core[:, 1:] &= foreground[:, :-1]
    core[:, :-1] &= foreground[:, 1:]
    if not core.any():
        core = foreground
    core &= contrast >= np.median(contrast[core])
    return np.asarray(np.median(tile[core], axis=0), np.float32)


def _name_of(colour: NDArray[np.float32]) -> str | None:
    """Return the name of the nearest colour, None if it is too far."""
    distances = _length(_named_colours() - colour)
    nearest = int(distances.argmin())
    return tuple(COLOURS)[nearest] if distances[nearest] <= COLOUR_LIMIT else None


def _coverage(
    tile: NDArray[np.float32], background: NDArray[np.float32], own: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how far each pixel is from background to colour, and how far beside the way there."""
    way = own - background
    share = (((tile - background) @ way) / max(float(way @ way), 1.0)).clip(0.0, 1.0)
    residual = _length(tile - background - share[..., None] * way)
    # Narrower edges: small differences of background and colour must not count as coverage.
    return ((share - 0.5) / _EDGE_WIDTH + 0.5).clip(0.0, 1.0), residual


def _shape_and_size(coverage: NDArray[np.float32]) -> tuple[str | None, str | None]:
    """Return the words for the shape that fits best; None where the fit is not good enough."""
    area = float(coverage.sum())
    middles = np.arange(TILE_SIZE, dtype=np.float32) + 0.5
    x = float(coverage.sum(axis=0) @ middles) / max(area, 1.0)
    y = float(coverage.sum(axis=1) @ middles) / max(area, 1.0)
    best, least = _templates()[0], np.inf
    for template in _templates():
        radius = (area / template.area) ** 0.5
        across, down = _cells((middles - x) / radius), _cells((middles - y) / radius)
        distance = radius * template.table[down[:, None], across]
        fitted = (0.5 - distance / _EDGE_WIDTH).clip(0.0, 1.0)
        difference = float(np.abs(fitted - coverage).sum())
        if difference < least:
            best, least = template, difference
    radius = (area / best.area) ** 0.5
    off_centre = max(
        abs(place - radius * offset - TILE_SIZE / 2)
        for place, offset in zip((x, y), best.centroid, strict=True)
    )
    allowed = min(OUTLINE_LIMIT * best.perimeter * radius, AREA_LIMIT * area)
    is_in_range = RADIUS_LIMITS[0] <= radius <= RADIUS_LIMITS[1]
    if least > allowed or off_centre > CENTRE_LIMIT or not is_in_range:
        return None, None
    return best.shape, "大" if radius > SIZE_BORDER else "小"


def _cells(places: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the cells of a table for distances from the centroid, in radii."""
    reach = _TABLE_REACH
    return np.rint((places.clip(-reach, reach) + reach) * _CELLS_PER_RADIUS).astype(np.int64)


@functools.cache
def _templates() -> tuple[_Template, ...]:
    """Return the circle, and the other shapes at every rotation."""
    return tuple(
        _template(shape, rotation)
        for shape in SHAPES
        for rotation in (_ROTATIONS if shape != CIRCLE else (0,))
    )


def _template(shape: str, rotation: float) -> _Template:
    """Measure a shape of radius 1 and tabulate its distances."""
    if shape == CIRCLE:
        area, perimeter, centroid = math.pi, 2 * math.pi, (0.0, 0.0)
    else:
        area, perimeter, centroid = _measures(np.array(corners_of(shape, rotation)))
    places = np.linspace(
        -_TABLE_REACH, _TABLE_REACH, round(2 * _TABLE_REACH * _CELLS_PER_RADIUS) + 1
    )
    x, y = np.meshgrid(places + centroid[0], places + centroid[1])
    distances = signed_distance(shape, x.ravel(), y.ravel(), rotation)
    return _Template(
        shape=shape,
        table=distances.reshape(x.shape).astype(np.float32),
        area=area,
        perimeter=perimeter,
        centroid=centroid,
    )


def _measures(corners: NDArray[np.float64]) -> tuple[float, float, tuple[float, float]]:
    """Return area, perimeter and centroid of a polygon with clockwise corners, [corners, 2]."""
    following = np.roll(corners, -1, axis=0)
    crosses = corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]
    area = float(crosses.sum()) / 2
    x, y = (crosses @ (corners + following)) / (6 * area)
    perimeter = float(np.hypot(*(following - corners).T).sum())
    return area, perimeter, (float(x), float(y))


@functools.cache
def _named_colours() -> NDArray[np.float32]:
    return np.array(list(COLOURS.values()), np.float32)


def _length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.sqrt(np.square(vectors).sum(axis=-1)), np.float32)
