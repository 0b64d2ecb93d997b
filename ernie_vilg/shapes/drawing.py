"""The renderer of the built-in data: Pillow's polygons, eight times as large, then averaged."""

import math

from PIL import Image, ImageDraw

from ernie_vilg.shapes.looks import ObjectLook, SceneLook, plain_look
from ernie_vilg.shapes.outlines import CIRCLE, corners_of
from ernie_vilg.shapes.scenes import IMAGE_SIZE, QUADRANTS, TILE_SIZE, Scene

_OVERSAMPLING = 8
_ROUNDING = 1e-6  # keeps the errors of sines away from the halves


def draw_scene(scene: Scene, look: SceneLook | None = None) -> Image.Image:
    """Draw a scene.

    Args:
        scene: content of the picture.
        look: look of the scene; None takes the plain one.

    Returns:
        an RGB picture, 64 x 64.
    """
    look = look or plain_look(scene)
    picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), look.background)
    for item, appearance in zip(scene.objects, look.objects, strict=True):
        x, y = QUADRANTS[item.quadrant]
        left, top = x - TILE_SIZE // 2, y - TILE_SIZE // 2
        mask = _coverage(item.shape, appearance, left, top)
        picture.paste(appearance.colour, (left, top), mask)
    return picture


def _coverage(shape: str, look: ObjectLook, left: int, top: int) -> Image.Image:
    """Return how much of each pixel of a quadrant an object covers, a grey picture from 0 to 255.

    Args:
        shape: member of `SHAPES`.
        look: place, radius and rotation. The object stays within the quadrant.
        left: left edge of the quadrant, pixels.
        top: upper edge of the quadrant, pixels.
    """
    side = TILE_SIZE * _OVERSAMPLING
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    x, y = _OVERSAMPLING * (look.x - left), _OVERSAMPLING * (look.y - top)
    radius = _OVERSAMPLING * look.radius
    if shape == CIRCLE:
        # Pillow fills the last pixel of a box too, hence the - 1.
        draw.ellipse((x - radius, y - radius, x + radius - 1, y + radius - 1), fill=255)
    else:
        corners = [
            (_pixel(x, radius * across), _pixel(y, radius * down))
            for across, down in corners_of(shape, look.rotation)
        ]
        draw.polygon(corners, fill=255)
    return canvas.reduce(_OVERSAMPLING)  # the mean of 8 x 8 pixels: a box filter


def _pixel(centre: float, offset: float) -> int:
    """Return the pixel of the canvas for a corner at some distance from an object's centre.

    Pillow fills the pixels of a polygon's outline too, half a pixel too much on all sides, so the
    corner is drawn half a pixel nearer to the centre.
    """
    nearer = 0.0 if abs(offset) < _ROUNDING else math.copysign(0.5, offset)
    return math.floor(centre + offset - nearer + _ROUNDING)
