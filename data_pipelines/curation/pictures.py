"""Rules for a picture: animations, size, proportions, and single colours.

Source: ours; the paper states no rule for pictures.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from data_pipelines.curation.verdicts import Verdict, broken
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import Rules

MAX_SIDE_OF_CONTRAST = 512
"""Most pixels a side whose grey values are measured; a larger picture gives every n-th."""

_VALUES = tuple(range(256))
_SQUARES = tuple(value * value for value in _VALUES)


@dataclass(frozen=True, kw_only=True)
class LoadedPicture:
    """A decoded picture, and what its file says."""

    image: Image.Image
    """RGB, upright, of its own size."""
    is_animated: bool
    """Whether the file has several frames, of which this is the first."""


PictureRule = Callable[[LoadedPicture], Verdict]
"""A rule that is on: it measures a picture and judges it."""


def picture_rules(rules: Rules) -> Iterator[PictureRule]:
    """Yield the rules for pictures that are on, in the order of `Rules`."""
    if rules.animated == "refuse":
        yield check_animation
    if rules.min_side is not None:
        yield functools.partial(check_side, at_least=rules.min_side)
    if rules.max_aspect_ratio is not None:
        yield functools.partial(check_aspect_ratio, at_most=rules.max_aspect_ratio)
    if rules.min_contrast is not None:
        yield functools.partial(check_contrast, at_least=rules.min_contrast)


def check_animation(picture: LoadedPicture) -> Verdict:
    """Reject animations."""
    if not picture.is_animated:
        return Verdict()
    return Verdict(rejection=broken(Reason.ANIMATED, "the file has several frames"))


def check_side(picture: LoadedPicture, *, at_least: int) -> Verdict:
    """Reject pictures whose shorter side has too few pixels."""
    width, height = picture.image.size
    if min(width, height) >= at_least:
        return Verdict()
    detail = f"{width} x {height} pixels, at least {at_least} a side"
    return Verdict(rejection=broken(Reason.TOO_SMALL, detail))


def check_aspect_ratio(picture: LoadedPicture, *, at_most: float) -> Verdict:
    """Reject pictures that are too wide or too tall."""
    width, height = picture.image.size
    ratio = max(width, height) / min(width, height)
    if ratio <= at_most:
        return Verdict()
    detail = f"{width} x {height} pixels, ratio {ratio:.2f}, at most {at_most:g}"
    return Verdict(rejection=broken(Reason.ASPECT_RATIO, detail))


def check_contrast(picture: LoadedPicture, *, at_least: float) -> Verdict:
    """Reject pictures of one colour, such as placeholders."""
    value = contrast(picture.image)
    measures = {"contrast": value}
    if value >= at_least:
        return Verdict(measures=measures)
    detail = f"standard deviation {value:.2f} of the grey values, at least {at_least:g}"
    return Verdict(measures=measures, rejection=broken(Reason.SINGLE_COLOUR, detail))


def contrast(image: Image.Image) -> float:
    """Return the standard deviation of a picture's grey values, 0 to 127.5.

    Args:
        image: RGB, any size; a large one is sampled on an even grid.
    """
    size = tuple(min(side, MAX_SIDE_OF_CONTRAST) for side in image.size)
    if size != image.size:
        image = image.resize((size[0], size[1]), Image.Resampling.NEAREST)
    counts = image.convert("L").histogram()
    # Sums of whole numbers are exact, so the value is the same on every machine.
    total = sum(counts)
    mean = sum(map(operator.mul, counts, _VALUES)) / total
    squares = sum(map(operator.mul, counts, _SQUARES)) / total
    return math.sqrt(max(0.0, squares - mean * mean))
