"""The content of the built-in pictures: one to three flat shapes, each in its own quadrant.

A scene says in words what a picture shows: the shape, size, colour and quadrant of each object.
Its caption (`captions`) names these facts and nothing else, so picture and caption can each be
judged by the other. Everything else about a picture, such as the exact place and radius of an
object, is its look (`looks`).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from ernie_vilg.errors import InputError

Colour = tuple[int, int, int]

IMAGE_SIZE = 64
"""Width and height of a picture, pixels."""
TILE_SIZE = IMAGE_SIZE // 2
"""Width and height of a quadrant, pixels."""

SHAPES = ("圆形", "正方形", "三角形", "五角星")
"""Words for circle, square, triangle and five-pointed star."""
SIZES = ("大", "小")
"""Words for large and small."""
COLOURS: dict[str, Colour] = {
    "红色": (220, 40, 40),
    "绿色": (40, 160, 60),
    "蓝色": (40, 80, 220),
    "黄色": (240, 210, 40),
    "紫色": (150, 60, 180),
    "橙色": (245, 140, 30),
    "黑色": (20, 20, 20),
    "灰色": (130, 130, 130),
}
"""Words for red, green, blue, yellow, purple, orange, black and grey, with RGB from 0 to 255."""
QUADRANTS = {"左上角": (16, 16), "右上角": (48, 16), "左下角": (16, 48), "右下角": (48, 48)}
"""Words for top left, top right, bottom left and bottom right in the order of scenes, with the
centre (x, y) in pixels; x grows to the right and y down."""

MAX_OBJECTS = 3

_QUADRANT_ORDER = {name: index for index, name in enumerate(QUADRANTS)}


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape in words."""

    shape: str
    """Member of `SHAPES`."""
    size: str
    """Member of `SIZES`."""
    colour: str
    """Key of `COLOURS`."""
    quadrant: str
    """Key of `QUADRANTS`."""

    def __post_init__(self) -> None:
        known = {
            "shape": SHAPES,
            "size": SIZES,
            "colour": tuple(COLOURS),
            "quadrant": tuple(QUADRANTS),
        }
        for field, words in known.items():
            if getattr(self, field) not in words:
                raise InputError(
                    f"{field}={getattr(self, field)!r}: choose one of {', '.join(words)}"
                )


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Content of one picture."""

    objects: tuple[SceneObject, ...]
    """One to three objects in different quadrants, in the order of `QUADRANTS`."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise InputError(
                f"a scene of {len(self.objects)} objects: it must hold 1 to {MAX_OBJECTS}"
            )
        positions = [_QUADRANT_ORDER[item.quadrant] for item in self.objects]
        if positions != sorted(set(positions)):
            raise InputError(
                f"objects in {', '.join(item.quadrant for item in self.objects)}: each needs a "
                f"quadrant of its own, in the order {', '.join(QUADRANTS)}"
            )


def scene_of(objects: list[SceneObject]) -> Scene:
    """Return the scene of objects in any order.

    Raises:
        InputError: there are too few or too many, or two share a quadrant.
    """
    ordered = sorted(objects, key=lambda item: _QUADRANT_ORDER[item.quadrant])
    return Scene(objects=tuple(ordered))


def all_scenes(num_objects: int) -> Iterator[Scene]:
    """Yield every scene of some number of objects once, in a fixed order.

    There are 256 of one object, 24,576 of two and 1,048,576 of three.
    """
    words = list(itertools.product(SHAPES, SIZES, COLOURS))
    objects_in = {
        quadrant: [
            SceneObject(shape=shape, size=size, colour=colour, quadrant=quadrant)
            for shape, size, colour in words
        ]
        for quadrant in QUADRANTS
    }
    for quadrants in itertools.combinations(QUADRANTS, num_objects):
        for objects in itertools.product(*(objects_in[quadrant] for quadrant in quadrants)):
            yield Scene(objects=objects)
