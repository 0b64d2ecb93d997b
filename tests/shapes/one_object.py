"""Scenes of one object with a look that a test chooses."""

from typing import Any

from ernie_vilg.shapes.looks import ObjectLook, SceneLook
from ernie_vilg.shapes.scenes import COLOURS, QUADRANTS, Scene, SceneObject
from ernie_vilg.shapes.splits import ScenePair
from ernie_vilg.shapes.variety import WHITE


def one_object(
    shape: str = "圆形",
    size: str = "大",
    colour: str = "黑色",
    quadrant: str = "左上角",
    **look: Any,
) -> ScenePair:
    """Return a scene of one object; without further settings it lies in the middle, upright."""
    x, y = QUADRANTS[quadrant]
    plain = {
        "x": x, "y": y, "radius": 13.0 if size == "大" else 8.0, "rotation": 0.0,
        "colour": COLOURS[colour],
    }  # fmt: skip
    background = look.pop("background", WHITE)
    item = SceneObject(shape=shape, size=size, colour=colour, quadrant=quadrant)
    return ScenePair(
        scene=Scene(objects=(item,)),
        look=SceneLook(background=background, objects=(ObjectLook(**{**plain, **look}),)),
        caption="",
    )
