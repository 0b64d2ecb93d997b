"""Splits of the built-in data: what is trained on, and what never is.

An eighth of the (shape, colour) pairs is never trained on. Scenes with such a pair belong to
`unseen_pairs`; a tenth of all others, chosen by a hash of the scene's words, to `held_out`; the
rest to `train`. The number of objects alternates between one, two and three, so every split, and
every start of one, holds them in equal shares.

Pair n of a split depends on the variety, the seed, the split and n alone. The scenes are the same
in every variety.
"""

import hashlib
import random
from dataclasses import dataclass

from PIL import Image

from ernie_vilg.errors import InputError
from ernie_vilg.shapes.captions import caption_of, random_caption
from ernie_vilg.shapes.drawing import draw_scene
from ernie_vilg.shapes.looks import SceneLook, choose, random_look
from ernie_vilg.shapes.scenes import (
    COLOURS,
    MAX_OBJECTS,
    QUADRANTS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    scene_of,
)
from ernie_vilg.shapes.variety import Variety

TRAIN, HELD_OUT, UNSEEN_PAIRS = "train", "held_out", "unseen_pairs"
SPLITS = (TRAIN, HELD_OUT, UNSEEN_PAIRS)

NEVER_TRAINED = frozenset(
    {("圆形", "紫色"), ("正方形", "黄色"), ("三角形", "橙色"), ("五角星", "灰色")}
)
"""Pairs of shape and colour that are never trained on: each shape lacks one of eight colours, and
each of these colours one of four shapes."""
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, kw_only=True)
class ScenePair:
    """A scene with the look of its picture and with its caption."""

    scene: Scene
    """Content of the picture."""
    look: SceneLook
    """Look of the picture."""
    caption: str
    """Caption of the picture."""

    def draw(self) -> Image.Image:
        """Draw the picture, RGB, 64 x 64."""
        return draw_scene(self.scene, self.look)


def split_of(scene: Scene) -> str:
    """Return the split that a scene belongs to.

    The hash is of the first form of the caption, which describes the scene fully, so the answer is
    the same on every machine and stays the same when looks or forms are added.
    """
    if any((item.shape, item.colour) in NEVER_TRAINED for item in scene.objects):
        return UNSEEN_PAIRS
    digest = hashlib.sha256(caption_of(scene).encode()).digest()
    return HELD_OUT if int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0 else TRAIN


def scene_pair(variety: Variety, *, seed: int, split: str, index: int) -> ScenePair:
    """Return one pair of a split.

    Args:
        variety: limits of the look and of the caption.
        seed: seed of the data set.
        split: member of `SPLITS`.
        index: position in the split, from 0.

    Raises:
        InputError: there is no such split.
    """
    if split not in SPLITS:
        raise InputError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"{seed} {split} {index}")  # hashes the text by SHA-512
    num_objects = 1 + index % MAX_OBJECTS
    scene = _random_scene(num_objects, rng)
    while split_of(scene) != split:
        scene = _random_scene(num_objects, rng)
    look = random_look(scene, variety, rng)
    return ScenePair(scene=scene, look=look, caption=random_caption(scene, variety, rng))


def _random_scene(num_objects: int, rng: random.Random) -> Scene:
    """Draw a scene at random, each with this number of objects equally likely."""
    free = list(QUADRANTS)
    objects = [
        SceneObject(
            shape=choose(SHAPES, rng),
            size=choose(SIZES, rng),
            colour=choose(tuple(COLOURS), rng),
            quadrant=free.pop(int(rng.random() * len(free))),
        )
        for _ in range(num_objects)
    ]
    return scene_of(objects)
