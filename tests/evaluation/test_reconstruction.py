"""The loss of quality by the image tokenizer is measured in dB."""

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from ernie_vilg.evaluation.reconstruction import reconstruct


def flat(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value, value, value))


class OneCodePerGrey:
    """Pictures of one grey, and its tenth as their only code."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.tensor([[[image.getpixel((0, 0))[0] // 10]] for image in images])  # type: ignore[index]

    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        return [flat(int(code) * 10) for code in codes.flatten()]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_reconstruction_keeps_order_and_counts_codes(batch_size: int) -> None:
    rebuilt = reconstruct(
        OneCodePerGrey(), [flat(7), flat(21), flat(3), flat(28)], batch_size=batch_size
    )

    assert [image.getpixel((0, 0))[0] for image in rebuilt.images] == [0, 20, 0, 20]  # type: ignore[index]
    assert rebuilt.num_codes == 2
