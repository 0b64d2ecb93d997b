"""Captions of scenes: sentences that name the objects, and their reader."""

import functools
import random
import re
from collections.abc import Sequence

from ernie_vilg.errors import InputError
from ernie_vilg.shapes.looks import choose
from ernie_vilg.shapes.scenes import (
    COLOURS,
    QUADRANTS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    scene_of,
)
from ernie_vilg.shapes.variety import FORMS, SYNONYMS, Variety

COMMA = "，"

_WORDS = {
    "shape": SHAPES,
    "size": SIZES,
    "colour": tuple(COLOURS),
    "quadrant": tuple(QUADRANTS),
}


def caption_of(scene: Scene) -> str:
    """Return the caption in the first form.

    An example is `左上角有一个红色的大圆形，右下角有一个蓝色的小三角形`.
    """
    return COMMA.join(_sentence(item, FORMS[0]) for item in scene.objects)


def random_caption(scene: Scene, variety: Variety, rng: random.Random) -> str:
    """Write a caption at random, in a form, words and order that a variety allows."""
    form = choose(variety.caption_forms, rng)
    left = list(scene.objects)
    sentences = []
    while left:
        item = left.pop(int(rng.random() * len(left)) if variety.any_order else 0)
        words = {
            field: choose((word, *variety.synonyms.get(word, ())), rng)
            for field, word in _words_of(item).items()
        }
        sentences.append(form.format(**words))
    return COMMA.join(sentences)


def parse_caption(text: str) -> Scene | None:
    """Return the scene that a caption names, in any form and order of any variety.

    Args:
        text: the caption. An ASCII comma counts as a full-width one, because text tokenizers apply
            NFKC, which turns the second into the first. Nothing else may differ.

    Returns:
        the scene, or None if the text is not a caption of any scene.
    """
    sentences = text.replace(",", COMMA).split(COMMA)
    for pattern in _patterns():
        matches = [pattern.fullmatch(sentence) for sentence in sentences]
        found = [match for match in matches if match is not None]
        if len(found) == len(sentences):
            return _scene_or_none([_object_of(match) for match in found])
    return None


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


def _sentence(item: SceneObject, form: str) -> str:
    return form.format(**_words_of(item))


def _words_of(item: SceneObject) -> dict[str, str]:
    return {field: getattr(item, field) for field in _WORDS}


def _scene_or_none(objects: list[SceneObject]) -> Scene | None:
    try:
        return scene_of(objects)
    except InputError:  # too many objects, or two in one quadrant
        return None


def _object_of(match: "re.Match[str]") -> SceneObject:
    names = _names()
    return SceneObject(**{field: names[match[field]] for field in _WORDS})


@functools.cache
def _names() -> dict[str, str]:
    """Return the word of scenes for each word of captions."""
    own = {word: word for words in _WORDS.values() for word in words}
    return own | {other: word for word, others in SYNONYMS.items() for other in others}


@functools.cache
def _patterns() -> tuple["re.Pattern[str]", ...]:
    """Return one expression for the sentences of each form."""
    groups = {}
    for field, words in _WORDS.items():
        known = [written for word in words for written in (word, *SYNONYMS.get(word, ()))]
        groups[field] = f"(?P<{field}>{'|'.join(known)})"
    return tuple(re.compile(form.format(**groups)) for form in FORMS)
