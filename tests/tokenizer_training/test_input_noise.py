"""Noise of the encoder's pictures: of the size asked for, in squares, within the range."""

import pytest
import torch

from ernie_vilg.tokenizer_training.input_noise import with_noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_noise_returns_the_pictures_and_draws_nothing() -> None:
    images = torch.zeros(1, 3, 16, 16)
    source = generator()
    before = source.get_state()

    assert with_noise(images, 0.0, source) is images
    assert torch.equal(source.get_state(), before)


def test_a_quarter_of_the_variance_is_of_each_size_of_squares() -> None:
    noise = with_noise(torch.zeros(8, 3, 256, 256), 0.1, generator())

    # Means over squares keep the noise of larger squares, and lose what is smaller.
    for side, share in ((1, 1.0), (8, (1 + 1 / 4 + 1 / 16 + 1 / 64) / 4), (16, 0.25 * 85 / 256)):
        means = torch.nn.functional.avg_pool2d(noise, side)
        assert float(means.std()) == pytest.approx(0.1 * share**0.5, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.001)


def test_pixels_stay_in_their_range_and_sizes_need_not_divide() -> None:
    white = torch.ones(2, 3, 12, 20).contiguous(memory_format=torch.channels_last)

    noisy = with_noise(white, 0.5, generator())

    assert noisy.shape == white.shape
    assert noisy.is_contiguous(memory_format=torch.channels_last)
    assert float(noisy.max()) == 1
    assert -1 <= float(noisy.min()) < 0.9


def test_the_generator_alone_decides() -> None:
    images = torch.zeros(1, 3, 16, 16)

    assert torch.equal(with_noise(images, 0.1, generator(1)), with_noise(images, 0.1, generator(1)))
    assert not torch.equal(
        with_noise(images, 0.1, generator(1)), with_noise(images, 0.1, generator(2))
    )
