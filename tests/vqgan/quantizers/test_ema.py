"""Averages of encoder outputs are the codes."""

import torch

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.vqgan.quantizers.ema import EMAQuantizer
from tests.vqgan.quantizers.made import grid, random_grid

MADE, SKIPPED = torch.tensor(True), torch.tensor(False)


def quantizer_at(*positions: float) -> EMAQuantizer:
    quantizer = EMAQuantizer(len(positions), 1, CodebookConfig(ema_decay=0.75))
    quantizer.set_codes(torch.arange(len(positions)), torch.tensor(positions)[:, None])
    return quantizer


def test_code_moves_to_the_average_of_its_outputs() -> None:
    quantizer = quantizer_at(0.0, 100.0)

    statistics = quantizer(grid([[3.0], [5.0]])).statistics
    assert statistics.tolist() == [[2.0, 8.0], [0.0, 0.0]]  # count and sum
    quantizer.update(statistics, MADE)

    # Code 0: count 0.75 + 0.25 * 2 = 1.25, sum 0.25 * 8 = 2. Code 1 keeps the quotient 75 / 0.75.
    torch.testing.assert_close(
        quantizer.codebook, torch.tensor([[1.6], [100.0]]), rtol=2e-5, atol=2e-5
    )
    torch.testing.assert_close(quantizer.average_counts, torch.tensor([1.25, 0.75]))


def test_skipped_step_leaves_no_trace_even_of_nan() -> None:
    quantizer = quantizer_at(0.0, 100.0)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}

    quantizer.update(torch.full((2, 2), torch.nan), SKIPPED)

    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_statistics_of_halves_add_up_to_those_of_the_batch() -> None:
    quantizer = EMAQuantizer(6, 4, CodebookConfig())
    vectors = random_grid(4, 4, 3, 3)

    whole = quantizer(vectors).statistics
    halves = [quantizer(half).statistics for half in vectors.split(2)]

    torch.testing.assert_close(halves[0] + halves[1], whole)


def test_averages_of_a_revived_code_are_those_of_one_output() -> None:
    quantizer = quantizer_at(0.0, 100.0)
    for _ in range(20):
        quantizer.update(quantizer(grid([[1.0]])).statistics, MADE)

    quantizer.set_codes(torch.tensor([1]), torch.tensor([[7.0]]))
    quantizer.update(quantizer(grid([[1.0]])).statistics, MADE)

    # Unused once more: the old average of 100 would pull it away.
    torch.testing.assert_close(quantizer.codebook[1], torch.tensor([7.0]), rtol=1e-4, atol=0)
    assert quantizer.average_counts[1].item() == 0.75


def test_no_gradient_moves_codes() -> None:
    quantizer = quantizer_at(0.0, 100.0)

    assert list(quantizer.parameters()) == []
    assert list(quantizer(grid([[1.0]])).losses) == ["commitment_loss"]
