"""The loss of quality by the image tokenizer is measured in dB."""

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from ernie_vilg.evaluation.reconstruction import psnr_of_pictures, reconstruct


def flat(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value, value, value))


def test_psnr_of_a_known_error() -> None:
    # Every value is off by 25.5, a tenth of the range: 10 log10(100) = 20 dB; here 26 and 25.
    assert psnr_of_pictures([flat(0), flat(0)], [flat(26), flat(25)]) == pytest.approx(
        20.0, abs=0.01
    )


def test_equal_pictures_have_the_largest_psnr() -> None:
    assert psnr_of_pictures([flat(7)], [flat(7)]) == 99.0


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
