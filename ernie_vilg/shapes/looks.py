"""The look of a scene: what its picture decides beyond its words, within a variety's limits.

Positions and radii are multiples of the variety's step, a whole number of the renderer's eighths of
a pixel, so no difference in rounding between machines reaches a pixel.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ernie_vilg.shapes.outlines import reach
from ernie_vilg.shapes.scenes import COLOURS, QUADRANTS, TILE_SIZE, Colour, Scene, SceneObject
from ernie_vilg.shapes.variety import WHITE, Variety

PLAIN_RADII = {"大": 13.0, "小": 8.0}
"""Radius by size of a plain look, pixels."""

_Item = TypeVar("_Item")
_ROUNDING = 1e-6  # far above the error of a sum, far below a step


@dataclass(frozen=True, kw_only=True)
class ObjectLook:
    """Exact place, extent and colour of one object."""

    x: float
    """Centre, pixels from the left edge of the picture."""
    y: float
    """Centre, pixels from the upper edge of the picture."""
    radius: float
    """Radius of the circle and of the star's outer tips; half the side of the square; half the
    height and half the base of the triangle; pixels."""
    rotation: float
    """Rotation about the centre, degrees, clockwise. A circle has none that shows."""
    colour: Colour
    """RGB from 0 to 255."""


@dataclass(frozen=True, kw_only=True)
class SceneLook:
    """Everything about a picture that its scene leaves open."""

    background: Colour
    """RGB from 0 to 255."""
    objects: tuple[ObjectLook, ...]
    """One look for each object of the scene, in its order."""


def plain_look(scene: Scene) -> SceneLook:
    """Return the look without jitter: centred, upright, exact colours, on white."""
    return SceneLook(
        background=WHITE,
        objects=tuple(
            ObjectLook(
                x=QUADRANTS[item.quadrant][0],
                y=QUADRANTS[item.quadrant][1],
                radius=PLAIN_RADII[item.size],
                rotation=0.0,
                colour=COLOURS[item.colour],
            )
            for item in scene.objects
        ),
    )


def random_look(scene: Scene, variety: Variety, rng: random.Random) -> SceneLook:
    """Draw a look at random within a variety's limits."""
    return SceneLook(
        background=choose(variety.backgrounds, rng),
        objects=tuple(_random_object(item, variety, rng) for item in scene.objects),
    )


def look_record(look: SceneLook) -> dict[str, Any]:
    """Return a look as an object of JSON."""
    return asdict(look)


def look_of_record(record: Mapping[str, Any]) -> SceneLook:
    """Return the look of an object of JSON: the inverse of `look_record`."""
    return SceneLook(
        background=_colour(record["background"]),
        objects=tuple(
            ObjectLook(**{**item, "colour": _colour(item["colour"])}) for item in record["objects"]
        ),
    )


def choose(items: Sequence[_Item], rng: random.Random) -> _Item:
    """Return one of the items, each equally likely.

    Python promises that `random()` gives the same numbers in every version, and only that.
    """
    return items[int(rng.random() * len(items))]


def _random_object(item: SceneObject, variety: Variety, rng: random.Random) -> ObjectLook:
    smallest, largest = variety.radii[item.size]
    radius = _on_grid(smallest, largest, variety.step, rng)
    rotation = round((2 * rng.random() - 1) * variety.rotation, 1)
    free = TILE_SIZE / 2 - radius * reach(item.shape, rotation)
    room = math.floor(min(variety.position_jitter, free) / variety.step + _ROUNDING) * variety.step
    x, y = QUADRANTS[item.quadrant]
    red, green, blue = (
        min(max(value + _jitter(variety.colour_jitter, rng), 0), 255)
        for value in COLOURS[item.colour]
    )
    return ObjectLook(
        x=x + _on_grid(-room, room, variety.step, rng),
        y=y + _on_grid(-room, room, variety.step, rng),
        radius=radius,
        rotation=rotation,
        colour=(red, green, blue),
    )


def _on_grid(smallest: float, largest: float, step: float, rng: random.Random) -> float:
    steps = round((largest - smallest) / step)
    return smallest + int(rng.random() * (steps + 1)) * step


def _jitter(limit: int, rng: random.Random) -> int:
    return int(rng.random() * (2 * limit + 1)) - limit


def _colour(values: Sequence[int]) -> Colour:
    red, green, blue = values
    return red, green, blue
