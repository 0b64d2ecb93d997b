"""Evaluation sets of the built-in data: the same scenes, disturbed.

A model that has learned one renderer's pixels by heart fails on them; one that has learned scenes
does not. The captions stay the same.
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from ernie_vilg.errors import InputError
from ernie_vilg.shapes.captions import required_scenes
from ernie_vilg.shapes.looks import look_of_record
from ernie_vilg.shapes.second_renderer import draw_scene_again
from ernie_vilg.shapes.splits import ScenePair

LOOK = "look"
"""Key of a picture's look in a line of `captions.jsonl`."""
JPEG_QUALITY = 80

Disturbance = Callable[[ScenePair], Image.Image]
"""Return the disturbed picture of a pair, RGB, 64 x 64."""


def scene_pairs(records: Sequence[Mapping[str, Any]]) -> list[ScenePair]:
    """Return the pairs of lines of `captions.jsonl` that `launch/draw_shapes.py` wrote.

    Args:
        records: the lines' objects, with "caption" and "look".

    Raises:
        InputError: a caption names no scene, or a line has no look that fits its scene.
    """
    captions = [str(record["caption"]) for record in records]
    pairs = []
    for scene, caption, record in zip(required_scenes(captions), captions, records, strict=True):
        look = look_of_record(record[LOOK]) if LOOK in record else None
        if look is None or len(look.objects) != len(scene.objects):
            raise InputError(
                f"the line of {record.get('image')} has no {LOOK!r} with one entry per object: "
                "disturbed pictures need a folder that launch/draw_shapes.py wrote, held_out/ or "
                "unseen_pairs/"
            )
        pairs.append(ScenePair(scene=scene, look=look, caption=caption))
    return pairs


def second_renderer(pair: ScenePair) -> Image.Image:
    """Draw the scene with the second renderer."""
    return draw_scene_again(pair.scene, pair.look)


def shifted(pair: ScenePair, *, pixels: int) -> Image.Image:
    """Move the picture right and down; what moves in has the colour of the background."""
    picture = pair.draw()
    moved = Image.new("RGB", picture.size, pair.look.background)
    moved.paste(picture, (pixels, pixels))
    return moved


def compressed(pair: ScenePair) -> Image.Image:
    """Pass the picture through JPEG, with halved colour resolution as is usual."""
    buffer = io.BytesIO()
    pair.draw().save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    with Image.open(buffer) as image:
        return image.convert("RGB")


DISTURBANCES: Mapping[str, Disturbance] = {
    "second_renderer": second_renderer,
    "shifted_1": functools.partial(shifted, pixels=1),
    "shifted_2": functools.partial(shifted, pixels=2),
    "jpeg_80": compressed,
}
"""Disturbances by name, in the order of reports."""
