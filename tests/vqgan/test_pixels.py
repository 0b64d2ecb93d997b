"""Bytes, pictures and numbers in [-1, 1] convert into each other without loss."""

import numpy as np
import pytest
import torch
from PIL import Image

from ernie_vilg.vqgan.pixels import from_bytes, from_pictures, to_bytes, to_pictures


def test_bytes_become_numbers_from_minus_one_to_one() -> None:
    numbers = from_bytes(torch.tensor([0, 51, 255], dtype=torch.uint8))

    assert numbers.dtype == torch.float32
    # 51 / 127.5 - 1 = -0.6
    assert numbers.tolist() == pytest.approx([-1.0, -0.6, 1.0])


def test_numbers_become_the_nearest_byte() -> None:
    # (x + 1) * 127.5 = 191.25, 102.51 and 102.49
    pixels = to_bytes(torch.tensor([0.5, -0.19600, -0.196157]))

    assert pixels.dtype == torch.uint8
    assert pixels.tolist() == [191, 103, 102]


def test_numbers_out_of_range_are_clamped() -> None:
    assert to_bytes(torch.tensor([-1.2, 1.2])).tolist() == [0, 255]


def test_every_byte_survives_the_way_there_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)

    assert torch.equal(to_bytes(from_bytes(every)), every)


def test_pictures_become_numbers_from_minus_one_to_one() -> None:
    batch = from_pictures([Image.new("RGB", (3, 2), (0, 255, 51))])

    assert batch.shape == (1, 3, 2, 3)
    assert batch.dtype == torch.float32
    # 51 / 127.5 - 1 = -0.6
    assert batch[0, :, 1, 2].tolist() == pytest.approx([-1.0, 1.0, -0.6])


def test_pictures_survive_the_way_there_and_back() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)

    pictures = to_pictures(from_pictures([Image.fromarray(pixels) for pixels in noise]))

    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), noise)
