"""The built-in pictures: one or two flat shapes on white, and the sentence that describes them.

A scene holds one or two objects, each in its own quadrant of a 64 x 64 picture. The caption names
every object's quadrant, colour, size and shape, and nothing else, so picture and caption hold the
same facts and each can be judged by the other. There are 24,832 scenes. A tenth of them, chosen by
a hash of the scene, is never trained on.

Coordinates are pixels, x to the right and y down, so a tip at `y - radius` points up.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ernie_vilg.errors import InputError

Colour = tuple[int, int, int]
Point = tuple[float, float]

IMAGE_SIZE = 64
"""Width and height of a picture, pixels."""
TILE_SIZE = IMAGE_SIZE // 2
"""Width and height of a quadrant, pixels."""
BACKGROUND: Colour = (255, 255, 255)

SHAPES = ("圆形", "正方形", "三角形", "五角星")
"""Words for circle, square, triangle and five-pointed star."""
SIZES = {"大": 13, "小": 8}
"""Words for large and small, with the radius in pixels."""
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
"""Words for top left, top right, bottom left and bottom right in the order of captions, with the
centre (x, y) in pixels."""

MAX_OBJECTS = 2
HELD_OUT_ONE_IN = 10

_OVERSAMPLING = 4
_STAR_INNER_RADIUS = 0.45  # of the outer one
_COMMA = "，"
_QUADRANT_ORDER = {name: index for index, name in enumerate(QUADRANTS)}


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape, described by the Chinese words of its caption."""

    shape: str
    """Member of `SHAPES`."""
    size: str
    """Key of `SIZES`."""
    colour: str
    """Key of `COLOURS`."""
    quadrant: str
    """Key of `QUADRANTS`."""

    def __post_init__(self) -> None:
        known = {
            "shape": SHAPES,
            "size": tuple(SIZES),
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
    """One or two objects in different quadrants, in the order of `QUADRANTS`."""

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


def all_scenes() -> Iterator[Scene]:
    """Yield every scene once: 256 of one object, then 24,576 of two, in a fixed order."""
    words = list(itertools.product(SHAPES, SIZES, COLOURS))
    objects_in = {
        quadrant: [
            SceneObject(shape=shape, size=size, colour=colour, quadrant=quadrant)
            for shape, size, colour in words
        ]
        for quadrant in QUADRANTS
    }
    for num_objects in range(1, MAX_OBJECTS + 1):
        for quadrants in itertools.combinations(QUADRANTS, num_objects):
            for objects in itertools.product(*(objects_in[quadrant] for quadrant in quadrants)):
                yield Scene(objects=objects)


def is_held_out(scene: Scene) -> bool:
    """Return true if a scene belongs to the tenth that is never trained on.

    The hash is of the caption, which describes the scene fully, so the answer is the same on every
    machine and stays the same when scenes are added.
    """
    digest = hashlib.sha256(caption_of(scene).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def caption_of(scene: Scene) -> str:
    """Return the caption, such as `左上角有一个红色的大圆形，右下角有一个蓝色的小三角形`."""
    return _COMMA.join(_phrase(item) for item in scene.objects)


def parse_caption(text: str) -> Scene | None:
    """Return the scene that a caption names: the inverse of `caption_of`.

    Args:
        text: the caption. An ASCII comma counts as a full-width one, because text tokenizers apply
            NFKC, which turns the second into the first. Nothing else may differ.

    Returns:
        the scene, or None if the text is not the caption of any scene.
    """
    objects = [_objects_by_phrase().get(part) for part in text.replace(",", _COMMA).split(_COMMA)]
    known = tuple(item for item in objects if item is not None)
    if len(known) != len(objects):
        return None
    try:
        return Scene(objects=known)
    except InputError:  # too many objects, or quadrants out of order
        return None


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene.

    Objects stay within their quadrants, so pasting cached quadrants gives the same pixels as
    drawing the whole picture, in a tenth of the time.

    Returns:
        an RGB picture, 64 x 64.
    """
    picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), BACKGROUND)
    for item in scene.objects:
        x, y = QUADRANTS[item.quadrant]
        tile = draw_object(shape=item.shape, size=item.size, colour=item.colour)
        picture.paste(tile, (x - TILE_SIZE // 2, y - TILE_SIZE // 2))
    return picture


@functools.cache
def draw_object(*, shape: str, size: str, colour: str) -> Image.Image:
    """Draw one quadrant that holds an object.

    Returns:
        an RGB picture, 32 x 32, with the object in its middle. Callers share it and must copy it
        before they draw on it.
    """
    side = TILE_SIZE * _OVERSAMPLING
    canvas = Image.new("RGB", (side, side), BACKGROUND)
    centre = (TILE_SIZE // 2 * _OVERSAMPLING, TILE_SIZE // 2 * _OVERSAMPLING)
    draw_shape(
        ImageDraw.Draw(canvas),
        shape,
        centre=centre,
        radius=SIZES[size] * _OVERSAMPLING,
        fill=COLOURS[colour],
    )
    return canvas.reduce(_OVERSAMPLING)  # the mean of 4 x 4 pixels: a box filter


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, *, centre: tuple[int, int], radius: int, fill: Colour
) -> None:
    """Fill one shape.

    Args:
        draw: canvas to draw on.
        shape: member of `SHAPES`.
        centre: (x, y) in pixels of the canvas.
        radius: radius of the circle and of the star's outer tips; half the side of the square; half
            the height and half the base of the triangle; in pixels of the canvas.
        fill: RGB from 0 to 255.
    """
    x, y = centre
    # Pillow includes the last pixel of a box, hence the - 1.
    box = (x - radius, y - radius, x + radius - 1, y + radius - 1)
    if shape == "圆形":
        draw.ellipse(box, fill=fill)
    elif shape == "正方形":
        draw.rectangle(box, fill=fill)
    elif shape == "三角形":
        draw.polygon(
            [(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill
        )
    else:
        draw.polygon(_star_outline(centre, radius), fill=fill)


def _star_outline(centre: tuple[int, int], radius: int) -> list[Point]:
    """Return the ten corners of a five-pointed star, the first tip up, then clockwise."""
    x, y = centre
    corners = []
    for index in range(10):
        length = radius if index % 2 == 0 else radius * _STAR_INNER_RADIUS
        angle = index * math.pi / 5  # from straight up
        corners.append((x + length * math.sin(angle), y - length * math.cos(angle)))
    return corners


def _phrase(item: SceneObject) -> str:
    return f"{item.quadrant}有一个{item.colour}的{item.size}{item.shape}"


@functools.cache
def _objects_by_phrase() -> dict[str, SceneObject]:
    return {
        _phrase(scene.objects[0]): scene.objects[0]
        for scene in itertools.takewhile(lambda scene: len(scene.objects) == 1, all_scenes())
    }
