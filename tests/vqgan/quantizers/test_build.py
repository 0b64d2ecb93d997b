"""Each quantizer does what all of them promise."""

from typing import get_args, get_type_hints

import pytest
import torch

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.vqgan.quantizers.build import build_quantizer
from ernie_vilg.vqgan.quantizers.quantizer import Quantizer
from tests.vqgan.quantizers.made import random_grid

ALL = get_args(get_type_hints(ImageTokenizerConfig)["quantizer"])
BY_DISTANCE = [name for name in ALL if name != "gumbel"]


def build(name: str, **settings: object) -> Quantizer:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(codebook_size=12, embedding_size=4, quantizer=name)  # type: ignore[arg-type]
    return build_quantizer(config, CodebookConfig(**settings))  # type: ignore[arg-type]


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("name", ALL)
def test_shapes_and_types_of_the_result(name: str) -> None:
    quantizer = build(name)
    vectors = random_grid(2, 4, 3, 5)

    quantized = quantizer(vectors, generator=noise())

    assert (quantized.vectors.shape, quantized.vectors.dtype) == ((2, 4, 3, 5), torch.float32)
    assert (quantized.codes.shape, quantized.codes.dtype) == ((2, 3, 5), torch.int64)
    assert quantizer.nearest(vectors).shape == (2, 3, 5)
    assert quantizer.code_vectors().shape == (12, 4)
    assert all(term.shape == () and term.isfinite() for term in quantized.losses.values())


@pytest.mark.parametrize("name", ALL)
def test_vectors_in_training_are_those_of_the_codes(name: str) -> None:
    quantizer = build(name)

    quantized = quantizer(random_grid(2, 4, 3, 3), generator=noise())

    assert torch.equal(quantized.vectors, quantizer.lookup(quantized.codes))


@pytest.mark.parametrize("name", BY_DISTANCE)
def test_codes_in_training_are_those_in_use(name: str) -> None:
    quantizer = build(name)
    vectors = random_grid(2, 4, 3, 3)

    assert torch.equal(quantizer(vectors).codes, quantizer.nearest(vectors))


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_and_the_encoder_get_a_gradient(name: str) -> None:
    quantizer = build(name)
    vectors = random_grid(2, 4, 3, 3).requires_grad_()

    quantized = quantizer(vectors, generator=noise())
    (quantized.vectors.sum() + sum(quantized.losses.values())).backward()

    assert vectors.grad is not None
    assert [key for key, value in quantizer.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", ALL)
def test_forward_changes_nothing_in_the_quantizer(name: str) -> None:
    quantizer = build(name)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}

    quantizer(random_grid(2, 4, 3, 3), generator=noise())

    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


@pytest.mark.parametrize("name", BY_DISTANCE)
def test_codes_that_are_set_lie_where_the_rows_do(name: str) -> None:
    quantizer = build(name)
    others = torch.tensor([i for i in range(12) if i not in (3, 7)])
    before = quantizer.code_vectors().detach()[others].clone()
    rows = random_grid(2, 4, seed=5)

    quantizer.set_codes(torch.tensor([7, 3]), rows)

    placed = quantizer.code_vectors().detach()
    assert torch.allclose(placed[[7, 3]], quantizer.to_code_space(rows))
    assert torch.equal(placed[others], before)
    assert quantizer.nearest(rows.t()[None, :, None]).tolist() == [[[7, 3]]]


@pytest.mark.parametrize("name", ALL)
def test_only_averages_have_statistics(name: str) -> None:
    statistics = build(name)(random_grid(1, 4, 2, 2), generator=noise()).statistics

    assert (statistics is not None) == (name == "ema")
