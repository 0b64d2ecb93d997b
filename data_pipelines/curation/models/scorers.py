"""Scorers of pairs and of pictures: the forms that a further kind of model takes.

`loading.py` chooses the class for each setting; `clip.py` names the kinds of `model_type` it knows.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class PairScorer(Protocol):
    """A model that says how well captions fit pictures."""

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> NDArray[np.float32]:
        """Return one score per pair, float32 [pairs].

        Args:
            images: RGB pictures of any size, one per caption; one may stand for several captions.
            captions: clean captions.
        """
        ...


class PictureScorer(Protocol):
    """A model that says how likely pictures have a property."""

    def score(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return one probability per picture, float32 [pictures].

        Args:
            images: RGB pictures of any size.
        """
        ...


def without_repeats(images: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """Return every picture object once, and the position among them of each given one."""
    numbers: dict[int, int] = {}
    places = [numbers.setdefault(id(image), len(numbers)) for image in images]
    return list({id(image): image for image in images}.values()), places
