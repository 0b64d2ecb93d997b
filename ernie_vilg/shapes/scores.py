"""Figures of pictures and captions of the built-in data, over all scenes and by number of objects.

A "named object" is one that the caption of a picture names. The figures of pictures are:

- `objects_correct`: fraction of the named objects whose quadrant shows exactly that object: shape,
  colour and size. An extra object does not lower it.
- `shapes_correct`, `colours_correct`, `sizes_correct`: fraction of the named objects whose quadrant
  shows an object with this attribute right.
- `quadrants_correct`: fraction of the named objects whose quadrant is not blank.
- `extra_objects`: number of quadrants that should be blank and are not.
- `scenes_correct`: fraction of the scenes with all four quadrants right, blank ones included.

Those of captions: `captions_correct` is the fraction that name exactly the objects of the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from ernie_vilg.errors import InputError
from ernie_vilg.shapes.captions import parse_caption
from ernie_vilg.shapes.judge import ObjectReading, read_objects
from ernie_vilg.shapes.scenes import MAX_OBJECTS, Scene

_Judged = tuple[Scene, Mapping[str, ObjectReading]]
"""A scene and what the judge sees in its picture, by quadrant."""


@dataclass(frozen=True, kw_only=True)
class PictureFigures:
    """Figures of some pictures; the module defines each."""

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


@dataclass(frozen=True, kw_only=True)
class PictureScores(PictureFigures):
    """Figures of the pictures drawn for some captions."""

    by_num_objects: dict[str, PictureFigures]
    """Figures of the scenes of one, two and three objects alone, under "1", "2" and "3"; without
    the numbers that no scene has."""


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Figures of the captions written for some pictures."""

    captions_correct: float
    """Fraction of captions that name exactly the objects of their picture, 0 to 1."""
    num_captions: int
    """Number of judged captions."""
    by_num_objects: dict[str, float]
    """`captions_correct` of the scenes of one, two and three objects alone, under "1", "2" and "3";
    without the numbers that no scene has."""


def score_pictures(expected: Sequence[Scene], images: Sequence[Image.Image]) -> PictureScores:
    """Judge pictures against the scenes that they should show.

    Args:
        expected: scenes that the captions name.
        images: one picture per scene, 64 x 64 pixels.

    Raises:
        InputError: there is nothing to judge, or a picture has another size.
    """
    _check_pairs(expected, images, "pictures")
    judged = [(scene, read_objects(image)) for scene, image in zip(expected, images, strict=True)]
    return PictureScores(
        **vars(_figures(judged)),
        by_num_objects={
            str(number): _figures(group)
            for number in range(1, MAX_OBJECTS + 1)
            if (group := [pair for pair in judged if len(pair[0].objects) == number])
        },
    )


def score_captions(expected: Sequence[Scene], captions: Sequence[str]) -> CaptionScores:
    """Judge captions against the scenes that they should name.

    Args:
        expected: scenes of the pictures.
        captions: one caption per scene.

    Raises:
        InputError: there is nothing to judge.
    """
    _check_pairs(expected, captions, "captions")
    right = [
        (len(scene.objects), caption_correct(scene, caption))
        for scene, caption in zip(expected, captions, strict=True)
    ]
    groups = {
        number: [is_right for objects, is_right in right if objects == number]
        for number in range(1, MAX_OBJECTS + 1)
    }
    return CaptionScores(
        captions_correct=sum(is_right for _, is_right in right) / len(right),
        num_captions=len(right),
        by_num_objects={
            str(number): sum(group) / len(group) for number, group in groups.items() if group
        },
    )


def caption_correct(expected: Scene, caption: str) -> bool:
    """Tell whether a caption names exactly the objects of a scene."""
    return parse_caption(caption.strip()) == expected


def objects_correct(expected: Scene, image: Image.Image) -> int:
    """Return the number of a scene's objects that the picture shows right in everything.

    Raises:
        InputError: the picture is not 64 x 64 pixels.
    """
    return _num_right(expected, read_objects(image))


def _check_pairs(expected: Sequence[Scene], made: Sequence[object], what: str) -> None:
    if not expected or len(expected) != len(made):
        raise InputError(
            f"{len(made)} {what} for {len(expected)} scenes: give one per scene, and at least one"
        )


def _num_right(scene: Scene, found: Mapping[str, ObjectReading]) -> int:
    seen = [(item, found.get(item.quadrant)) for item in scene.objects]
    return sum(reading is not None and reading.shows(item) for item, reading in seen)


def _figures(judged: Sequence[_Judged]) -> PictureFigures:
    named = [(item, found.get(item.quadrant)) for scene, found in judged for item in scene.objects]

    def fraction_right(attribute: str) -> float:
        hits = [
            seen is not None and getattr(seen, attribute) == getattr(item, attribute)
            for item, seen in named
        ]
        return sum(hits) / len(named)

    right = [_num_right(scene, found) for scene, found in judged]
    scenes_right = [
        count == len(scene.objects) == len(found)
        for count, (scene, found) in zip(right, judged, strict=True)
    ]
    return PictureFigures(
        objects_correct=sum(right) / len(named),
        shapes_correct=fraction_right("shape"),
        colours_correct=fraction_right("colour"),
        sizes_correct=fraction_right("size"),
        quadrants_correct=fraction_right("quadrant"),
        scenes_correct=sum(scenes_right) / len(judged),
        extra_objects=sum(
            len(found.keys() - {item.quadrant for item in scene.objects}) for scene, found in judged
        ),
        num_objects=len(named),
        num_scenes=len(judged),
    )
