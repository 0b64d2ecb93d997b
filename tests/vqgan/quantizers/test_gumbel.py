"""A Gumbel code is drawn by its logits in training and the most likely one in use."""

import math
from typing import Any

import pytest
import torch

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.vqgan.quantizers import gumbel
from ernie_vilg.vqgan.quantizers.gumbel import GumbelQuantizer
from tests.vqgan.quantizers.made import grid, random_grid


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantizer_of_logits(logits: list[float], **settings: Any) -> GumbelQuantizer:
    """Quantizer whose logits do not depend on the encoder outputs, with codes 10, 20, ..."""
    quantizer = GumbelQuantizer(len(logits), 1, CodebookConfig(**settings))
    with torch.no_grad():
        quantizer.projection.weight.zero_()
        quantizer.projection.bias.copy_(torch.tensor(logits))  # type: ignore[union-attr]
        quantizer.codebook.copy_(10 * torch.arange(1, len(logits) + 1)[:, None])
    return quantizer


def test_codes_are_drawn_with_the_probabilities_of_the_logits() -> None:
    quantizer = quantizer_of_logits([math.log(p) for p in (0.5, 0.3, 0.2)])

    codes = quantizer(torch.zeros(1, 1, 100, 100), generator=noise()).codes

    frequencies = torch.bincount(codes.flatten(), minlength=3) / 10_000
    # Three standard deviations of 10,000 draws
    torch.testing.assert_close(frequencies, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.015)


def test_the_most_likely_code_in_use_and_the_lowest_of_equals() -> None:
    quantizer = quantizer_of_logits([0.1, 2.0, 2.0])

    assert quantizer.nearest(torch.zeros(1, 1, 2, 2)).unique().tolist() == [1]


def test_parts_of_the_logits_give_the_codes_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = GumbelQuantizer(7, 3, CodebookConfig())
    vectors = random_grid(2, 3, 4, 4)
    whole = quantizer.projection(vectors).argmax(dim=1)

    monkeypatch.setattr(gumbel, "rows_per_table", lambda num_codes: 5)

    assert torch.equal(quantizer.nearest(vectors), whole)


def test_equal_generators_draw_equal_codes_and_others_others() -> None:
    quantizer = quantizer_of_logits([0.0] * 8)
    vectors = torch.zeros(1, 1, 4, 4)

    first, same, other = (quantizer(vectors, generator=noise(seed)).codes for seed in (1, 1, 2))

    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("choice", ["hard", "soft"])
def test_gradient_is_that_of_the_soft_choice(choice: Any) -> None:
    quantizer = GumbelQuantizer(
        5, 3, CodebookConfig(gumbel_choice=choice, final_gumbel_temperature=0.7)
    ).double()
    rows = random_grid(2, 3).double().requires_grad_()
    weights = random_grid(2, 3, seed=4).double()
    draws = torch.empty(2, 5).exponential_(generator=noise()).log().neg().double()

    def soft(rows: torch.Tensor) -> torch.Tensor:
        logits = rows @ quantizer.projection.weight.flatten(1).t() + quantizer.projection.bias
        return (((logits + draws) / 0.7).softmax(dim=1) @ quantizer.codebook * weights).sum()

    quantizer = quantizer.float()
    vectors = rows.detach().float().t()[None, :, None].requires_grad_()
    output = quantizer(vectors, generator=noise()).vectors[0, :, 0].t()
    (output * weights.float()).sum().backward()

    quantizer = quantizer.double()
    step = 1e-5 * torch.eye(6, dtype=torch.float64).view(6, 2, 3)
    expected = [(soft(rows + s) - soft(rows - s)).item() / 2e-5 for s in step]
    assert vectors.grad is not None
    torch.testing.assert_close(
        vectors.grad[0, :, 0].t().flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-5
    )


def test_soft_choice_decodes_the_mean_of_codes() -> None:
    # At a temperature of 1e6 noise and logits count for nothing: the mean of 10, 20, 30, 40.
    quantizer = quantizer_of_logits(
        [1.0, 2.0, 3.0, 4.0], gumbel_choice="soft", final_gumbel_temperature=1e6
    )

    assert quantizer(grid([[0.0]]), generator=noise()).vectors.item() == pytest.approx(25, abs=1e-2)


def test_divergence_from_uniform_choices() -> None:
    quantizer = quantizer_of_logits([math.log(3), 0.0], gumbel_kl_weight=2.0)

    loss = quantizer(grid([[0.0]]), generator=noise()).losses["divergence_loss"]

    expected = 0.75 * math.log(0.75 * 2) + 0.25 * math.log(0.25 * 2)
    assert loss.item() == pytest.approx(2 * expected)


def test_divergence_of_a_sure_choice_is_finite() -> None:
    quantizer = quantizer_of_logits([1000.0, 0.0], gumbel_kl_weight=1.0)

    loss = quantizer(grid([[0.0]]), generator=noise()).losses["divergence_loss"]

    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("progress", "fall", "expected"),
    [
        pytest.param(0.0, 0.5, 1.0, id="start"),
        pytest.param(0.125, 0.5, 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2, id="a quarter"),
        pytest.param(0.25, 0.5, 0.6, id="half of a cosine"),
        pytest.param(0.5, 0.5, 0.2, id="end of the fall"),
        pytest.param(1.0, 0.5, 0.2, id="end of the run"),
        pytest.param(0.0, 0.0, 0.2, id="no fall"),
    ],
)
def test_temperature_falls_by_a_cosine(progress: float, fall: float, expected: float) -> None:
    config = CodebookConfig(gumbel_temperature=1.0, final_gumbel_temperature=0.2, gumbel_fall=fall)

    assert GumbelQuantizer(2, 1, config).temperature(progress) == pytest.approx(expected)


def test_codes_cannot_be_placed() -> None:
    with pytest.raises(NotImplementedError, match="do not lie among encoder outputs"):
        GumbelQuantizer(2, 1, CodebookConfig()).set_codes(torch.tensor([0]), torch.zeros(1, 1))
