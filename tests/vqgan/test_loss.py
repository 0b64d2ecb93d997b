"""Each term of the image tokenizer's loss is the one that its name says."""

import math

import pytest
import torch

from ernie_vilg.vqgan.loss import psnr, quantization_loss, reconstruction_loss
from ernie_vilg.vqgan.quantizer import Quantized


def test_reconstruction_loss_weighs_absolute_and_squared_error() -> None:
    images = torch.zeros(1, 3, 1, 2)
    reconstruction = torch.tensor([1.0, 3.0]).expand(1, 3, 1, 2)

    loss = reconstruction_loss(reconstruction, images, absolute_weight=10.0, squared_weight=1.0)

    assert loss.item() == 10 * 2 + 5  # mean of 1, 3; mean of 1, 9


def test_quantization_loss_weighs_its_two_parts() -> None:
    quantized = Quantized(
        torch.zeros(1), torch.zeros(1), torch.tensor(2.0), commitment_loss=torch.tensor(3.0)
    )

    loss = quantization_loss(quantized, codebook_weight=1.0, commitment_weight=0.25)

    assert loss.item() == 2.75


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
