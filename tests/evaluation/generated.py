"""Results of models that are made up."""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Picture:
    image: Image.Image
    log_probability: float = -1.0


@dataclass(frozen=True)
class Text:
    caption: str
    log_probability: float = -2.0
