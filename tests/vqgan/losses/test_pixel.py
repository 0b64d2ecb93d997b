"""Each term of the image tokenizer's loss is the one that its name says."""

import math

import pytest
import torch
from PIL import Image

from ernie_vilg.vqgan.losses.pixel import (
    psnr,
    psnr_of_pictures,
    reconstruction_loss,
)


def test_reconstruction_loss_weighs_absolute_and_squared_error() -> None:
    images = torch.zeros(1, 3, 1, 2)
    reconstruction = torch.tensor([1.0, 3.0]).expand(1, 3, 1, 2)

    loss = reconstruction_loss(reconstruction, images, absolute_weight=10.0, squared_weight=1.0)

    assert loss.item() == 10 * 2 + 5  # mean of 1, 3; mean of 1, 9


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(4.0, 0.0, id="an error of the whole range"),
        pytest.param(0.04, 20.0, id="a tenth of the range"),
        pytest.param(0.0, math.inf, id="perfect"),
    ],
)
def test_psnr_of_pixels_from_minus_one_to_one(error: float, expected: float) -> None:
    assert psnr(error) == pytest.approx(expected)


def flat(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value, value, value))


def test_psnr_of_a_known_error() -> None:
    # Every value is off by 25.5, a tenth of the range: 10 log10(100) = 20 dB; here 26 and 25.
    assert psnr_of_pictures([flat(0), flat(0)], [flat(26), flat(25)]) == pytest.approx(
        20.0, abs=0.01
    )


def test_equal_pictures_have_the_largest_psnr() -> None:
    assert psnr_of_pictures([flat(7)], [flat(7)]) == 99.0
