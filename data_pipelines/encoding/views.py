"""Views of a picture: the squares of it that are encoded, some of them mirrored.

Image shards may hold larger pictures than the image tokenizer takes. The first view is the centre.
Every further one is cut at a place that (seed, key, view) draws, so no view depends on the order of
work, and those of a picture are the same in every encoding.

Source: random crops and flips are the usual augmentation of image tokenizers (VQGAN, Esser et al.
2021, arXiv:2012.09841); several encoded views per picture as in LlamaGen (Sun et al. 2024,
arXiv:2406.06525).
"""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from ernie_vilg.errors import InputError
from ernie_vilg.system.seeds import seed_named


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """The views of every picture of some image shards."""

    count: int
    """Number of views."""
    horizontal_flip: bool
    """Whether every other view is mirrored."""
    seed: int
    """Seed of the places of cuts."""
    source_size: int
    """Pixels per side of the pictures in the image shards."""
    image_size: int
    """Pixels per side of a view."""

    def __post_init__(self) -> None:
        different = 1 if self.source_size == self.image_size else self.count
        if self.count > different * (2 if self.horizontal_flip else 1):
            also = "" if self.horizontal_flip else ", or set horizontal_flip=true and views=2"
            raise InputError(
                f"views={self.count} of pictures of {self.source_size} pixels, all of which the "
                f"image tokenizer takes: the views would be equal; set views={different}{also}, or "
                f"build shards with a larger image_size than {self.image_size}"
            )
        if self.horizontal_flip and self.count == 1:
            raise InputError(
                "horizontal_flip=true with views=1: it mirrors every other view, and the first is "
                "never mirrored; set views=2 or more"
            )

    def as_settings(self) -> dict[str, Any]:
        """Return the manifest's settings: the number of views, and the cuts where there are any."""
        if self.source_size == self.image_size and self.count == 1:
            return {"views": 1, "cuts": None}
        seed = {"seed": self.seed} if self.count > 1 else {}
        cuts = {"from": self.source_size, "horizontal_flip": self.horizontal_flip, **seed}
        return {"views": self.count, "cuts": cuts}

    def is_whole(self, view: int) -> bool:
        """Return whether a view is the picture itself, neither cut nor mirrored."""
        return self.source_size == self.image_size and not self.is_mirrored(view)

    def is_mirrored(self, view: int) -> bool:
        """Return whether a view is mirrored."""
        return self.horizontal_flip and view % 2 == 1

    def place(self, key: str, view: int) -> tuple[int, int]:
        """Return the left and the upper edge of a view in its picture, pixels."""
        spare = self.source_size - self.image_size
        if view == 0:
            return spare // 2, spare // 2
        bits = seed_named(f"view {self.seed} {view} {key}")  # 63 of them
        return (bits >> 32) * (spare + 1) >> 31, (bits & 0xFFFFFFFF) * (spare + 1) >> 32

    def cut(self, image: Image.Image, key: str, view: int) -> Image.Image:
        """Return a view of a picture.

        Args:
            image: RGB picture of the image shard.
            key: key of its sample.
            view: number of the view, from 0.
        """
        if self.source_size != self.image_size:
            left, top = self.place(key, view)
            image = image.crop((left, top, left + self.image_size, top + self.image_size))
        if self.is_mirrored(view):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image
