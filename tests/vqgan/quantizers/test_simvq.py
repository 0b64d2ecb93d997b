"""All of SimVQ's codes move with the map."""

import torch

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.vqgan.quantizers.simvq import SimVQQuantizer
from tests.vqgan.quantizers.made import grid, random_grid


def test_one_used_code_moves_the_unused_ones() -> None:
    quantizer = SimVQQuantizer(2, 1, CodebookConfig())
    quantizer.set_codes(torch.tensor([0, 1]), torch.tensor([[1.0], [10.0]]))

    loss = quantizer(grid([[2.0]])).losses["codebook_loss"]
    loss.backward()
    with torch.no_grad():
        quantizer.code_map -= 0.5 * quantizer.code_map.grad

    # Slope of (map * 1 - 2)^2 at 1 is -2: the map becomes 2, and both codes double.
    assert quantizer.code_vectors().flatten().tolist() == [2.0, 20.0]


def test_code_is_revived_under_a_map_that_has_moved() -> None:
    quantizer = SimVQQuantizer(5, 3, CodebookConfig())
    with torch.no_grad():
        quantizer.code_map.copy_(random_grid(3, 3))
    before = quantizer.code_vectors().detach().clone()
    row = torch.tensor([[1.0, -2.0, 0.5]])

    quantizer.set_codes(torch.tensor([4]), row)

    torch.testing.assert_close(quantizer.code_vectors().detach()[4:], row)
    assert torch.equal(quantizer.code_vectors()[:4], before[:4])


def test_map_without_full_rank_brings_codes_as_near_as_it_can() -> None:
    quantizer = SimVQQuantizer(2, 2, CodebookConfig())
    with torch.no_grad():
        quantizer.code_map.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))

    quantizer.set_codes(torch.tensor([0]), torch.tensor([[3.0, 4.0]]))

    torch.testing.assert_close(quantizer.code_vectors().detach()[0], torch.tensor([3.0, 0.0]))
