"""Outlines of the shapes: the geometry that every renderer draws and the judge looks for.

Coordinates are pixels, x to the right and y down, so a tip at negative y points up. Rotation is
clockwise, in degrees.
"""

import functools
import math

Point = tuple[float, float]

CIRCLE = "圆形"
"""The one shape that is no polygon: a circle of radius 1 about the centre."""

_STAR_INNER_RADIUS = 0.45  # of the outer one


def _star() -> tuple[Point, ...]:
    """Return the ten corners of a five-pointed star, the first tip up, then clockwise."""
    corners = []
    for index in range(10):
        length = 1.0 if index % 2 == 0 else _STAR_INNER_RADIUS
        angle = index * math.pi / 5  # from straight up
        corners.append((length * math.sin(angle), -length * math.cos(angle)))
    return tuple(corners)


_CORNERS: dict[str, tuple[Point, ...]] = {
    "正方形": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "三角形": ((0, -1), (1, 1), (-1, 1)),
    "五角星": _star(),
}


@functools.lru_cache(maxsize=1024)
def corners_of(shape: str, rotation: float) -> tuple[Point, ...]:
    """Return the corners of a polygon of radius 1 about its centre, clockwise.

    Args:
        shape: a shape other than the circle.
        rotation: degrees, clockwise.
    """
    sine, cosine = math.sin(math.radians(rotation)), math.cos(math.radians(rotation))
    return tuple((x * cosine - y * sine, x * sine + y * cosine) for x, y in _CORNERS[shape])


def reach(shape: str, rotation: float) -> float:
    """Return the largest distance of a shape of radius 1 from its centre, along x or along y."""
    if shape == CIRCLE:
        return 1.0
    return max(abs(value) for corner in corners_of(shape, rotation) for value in corner)
