"""Judge of pictures of the built-in data, by their pixels alone.

A quadrant of a scene is blank or holds one of 64 objects (4 shapes x 2 sizes x 8 colours), so
there are 65 templates, drawn by the code that draws the data. Each quadrant of a picture is read as
its nearest template, by the sum of squared differences over pixels and channels. No token and no
model takes part: a picture is right when it looks right.

A "named object" is one that the caption of a picture names. The figures are:

- `objects_correct`: fraction of the named objects whose quadrant is read as exactly that object:
  shape, colour and size. An extra object does not lower it.
- `shapes_correct`, `colours_correct`, `sizes_correct`: fraction of the named objects whose quadrant
  is read as an object with this attribute right.
- `quadrants_correct`: fraction of the named objects whose quadrant is not blank.
- `extra_objects`: number of quadrants that should be blank and are not.
- `scenes_correct`: fraction of the scenes with all four quadrants right, blank ones included.
- `captions_correct`: fraction of the captions that name exactly the objects of the picture.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ernie_vilg.errors import InputError
from ernie_vilg.shapes.scenes import (
    BACKGROUND,
    COLOURS,
    IMAGE_SIZE,
    QUADRANTS,
    SHAPES,
    SIZES,
    TILE_SIZE,
    Scene,
    SceneObject,
    draw_object,
    parse_caption,
)

ObjectWords = tuple[str, str, str]
"""Shape, size and colour."""


@dataclass(frozen=True, kw_only=True)
class PictureScores:
    """Figures of the pictures drawn for some captions; the module defines each."""

    objects_correct: float
    """Fraction of named objects that are right in everything, 0 to 1."""
    shapes_correct: float
    """Fraction of named objects with the right shape."""
    colours_correct: float
    """Fraction of named objects with the right colour."""
    sizes_correct: float
    """Fraction of named objects with the right size."""
    quadrants_correct: float
    """Fraction of named objects whose quadrant is not blank."""
    scenes_correct: float
    """Fraction of scenes with four right quadrants."""
    extra_objects: int
    """Number of objects in quadrants that should be blank."""
    num_objects: int
    """Number of named objects."""
    num_scenes: int
    """Number of judged pictures."""


def read_objects(image: Image.Image) -> dict[str, SceneObject]:
    """Return the object of each quadrant that is not blank.

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
    pixels = _pixels(image)
    found = {}
    for quadrant, (x, y) in QUADRANTS.items():
        left, top = x - TILE_SIZE // 2, y - TILE_SIZE // 2
        words = _nearest_template(pixels[top : top + TILE_SIZE, left : left + TILE_SIZE])
        if words is not None:
            shape, size, colour = words
            found[quadrant] = SceneObject(shape=shape, size=size, colour=colour, quadrant=quadrant)
    return found


def objects_correct(expected: Scene, image: Image.Image) -> int:
    """Return the number of a scene's objects that the picture shows right in everything.

    Raises:
        InputError: the picture is not 64 x 64 pixels.
    """
    found = read_objects(image)
    return sum(found.get(item.quadrant) == item for item in expected.objects)


def score_pictures(expected: Sequence[Scene], images: Sequence[Image.Image]) -> PictureScores:
    """Judge pictures against the scenes that they should show.

    Args:
        expected: scenes that the captions name.
        images: one picture per scene, 64 x 64 pixels.

    Raises:
        InputError: there is nothing to judge, or a picture has another size.
    """
    if not expected or len(expected) != len(images):
        raise InputError(
            f"{len(images)} pictures for {len(expected)} scenes: give one picture per scene, and "
            "at least one"
        )
    found = [read_objects(image) for image in images]
    named = [
        (item, objects.get(item.quadrant))
        for scene, objects in zip(expected, found, strict=True)
        for item in scene.objects
    ]
    extra = [
        len(objects.keys() - {item.quadrant for item in scene.objects})
        for scene, objects in zip(expected, found, strict=True)
    ]
    right = [
        objects == {item.quadrant: item for item in scene.objects}
        for scene, objects in zip(expected, found, strict=True)
    ]

    def fraction_right(attribute: str) -> float:
        hits = [
            seen is not None and getattr(seen, attribute) == getattr(item, attribute)
            for item, seen in named
        ]
        return sum(hits) / len(named)

    return PictureScores(
        objects_correct=sum(item == seen for item, seen in named) / len(named),
        shapes_correct=fraction_right("shape"),
        colours_correct=fraction_right("colour"),
        sizes_correct=fraction_right("size"),
        quadrants_correct=fraction_right("quadrant"),
        scenes_correct=sum(right) / len(expected),
        extra_objects=sum(extra),
        num_objects=len(named),
        num_scenes=len(expected),
    )


def caption_correct(expected: Scene, caption: str) -> bool:
    """Tell whether a caption names exactly the objects of a scene."""
    return parse_caption(caption.strip()) == expected


def required_scenes(captions: Sequence[str]) -> list[Scene]:
    """Return the scenes that the captions of a data set name.

    Raises:
        InputError: a caption names no scene of the built-in data.
    """
    scenes = []
    for caption in captions:
        scene = parse_caption(caption)
        if scene is None:
            raise InputError(
                f"the caption {caption!r} names no scene of the built-in data: judge=shapes "
                "judges pictures drawn by launch/draw_shapes.py; use judge=none for others"
            )
        scenes.append(scene)
    return scenes


def _nearest_template(tile: NDArray[np.float32]) -> ObjectWords | None:
    """Return the words of the template nearest to a tile, None for the blank template."""
    templates = _templates()
    distances = {
        words: float(np.square(tile - template).sum()) for words, template in templates.items()
    }
    return min(distances, key=lambda words: distances[words])


@functools.cache
def _templates() -> Mapping[ObjectWords | None, NDArray[np.float32]]:
    """Return the 65 templates, float32 [height, width, channels] from 0 to 255."""
    blank = np.full((TILE_SIZE, TILE_SIZE, 3), BACKGROUND, np.float32)
    objects: dict[ObjectWords | None, NDArray[np.float32]] = {
        (shape, size, colour): _pixels(draw_object(shape=shape, size=size, colour=colour))
        for shape, size, colour in itertools.product(SHAPES, SIZES, COLOURS)
    }
    return {None: blank, **objects}


def _pixels(image: Image.Image) -> NDArray[np.float32]:
    return np.asarray(image.convert("RGB"), np.float32)
