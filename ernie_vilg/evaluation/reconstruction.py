"""Pictures after the image tokenizer alone: the upper limit of everything drawn with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor


class ImageCoder(Protocol):
    """A model that turns pictures into codes and back, such as `ErnieVilg`."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the codes of pictures, int64 [batch, grid, grid]."""

    def decode_images(self, codes: Tensor) -> Sequence[Image.Image]:
        """Return the pictures of codes."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Pictures after encoding and decoding."""

    images: tuple[Image.Image, ...]
    """Decoded pictures in the order of the originals."""
    num_codes: int
    """Number of different codes that the pictures use."""


def reconstruct(
    coder: ImageCoder, images: Sequence[Image.Image], *, batch_size: int
) -> Reconstruction:
    """Encode and decode pictures, `batch_size` at once."""
    decoded: list[Image.Image] = []
    used: set[int] = set()
    for start in range(0, len(images), batch_size):
        codes = coder.encode_images(images[start : start + batch_size])
        used.update(codes.unique().tolist())
        decoded.extend(coder.decode_images(codes))
    return Reconstruction(images=tuple(decoded), num_codes=len(used))
