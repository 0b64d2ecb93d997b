"""Each vector becomes its nearest code, which gradients move."""

import pytest
import torch

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.vqgan.quantizers.distances import nearest_codes
from ernie_vilg.vqgan.quantizers.nearest import NearestQuantizer
from tests.vqgan.quantizers.made import grid


def quantizer_with(codebook: list[list[float]], **settings: float) -> NearestQuantizer:
    rows = torch.tensor(codebook)
    quantizer = NearestQuantizer(*rows.shape, CodebookConfig(**settings))  # type: ignore[arg-type]
    with torch.no_grad():
        quantizer.codebook.copy_(rows)
    return quantizer


def test_nearest_code_by_distance() -> None:
    quantizer = quantizer_with([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])

    codes = quantizer.nearest(grid([[3.0, 0.5], [0.5, 0.5], [1.0, 2.5]]))

    assert codes.dtype == torch.int64
    assert codes.tolist() == [[[1, 0, 2]]]


def test_lookup_inverts_nearest() -> None:
    quantizer = quantizer_with([[0.0, 1.0], [2.0, 3.0]])

    vectors = quantizer.lookup(torch.tensor([[[1, 0]]]))

    assert torch.equal(vectors, grid([[2.0, 3.0], [0.0, 1.0]]))


def test_losses_are_the_weighted_mean_squared_distance() -> None:
    quantizer = quantizer_with([[0.0, 0.0]], codebook_weight=2.0, commitment_weight=0.5)

    losses = quantizer(grid([[1.0, 0.0], [0.0, 3.0]])).losses

    distance = (1 + 9) / 4  # 4 numbers
    assert {name: value.item() for name, value in losses.items()} == {
        "codebook_loss": 2 * distance,
        "commitment_loss": 0.5 * distance,
    }


def test_decoder_gets_the_very_vectors_that_codes_stand_for() -> None:
    # 0.1 + (0.3 - 0.1) is not 0.3 in float32.
    quantizer = quantizer_with([[0.3]])

    assert quantizer(grid([[0.1]])).vectors.item() == quantizer.codebook.item()


def test_gradient_passes_straight_through_to_the_encoder() -> None:
    vectors = grid([[1.0, 0.0]]).requires_grad_()

    quantized = quantizer_with([[5.0, 5.0]])(vectors)
    (quantized.vectors * grid([[2.0, 3.0]])).sum().backward()

    assert vectors.grad is not None
    assert vectors.grad.flatten().tolist() == [2.0, 3.0]


def test_codebook_loss_moves_codes_only_and_commitment_vectors_only() -> None:
    quantizer = quantizer_with([[0.0, 0.0], [9.0, 9.0]], commitment_weight=1.0)
    vectors = grid([[1.0, 0.0]]).requires_grad_()

    losses = quantizer(vectors).losses
    losses["codebook_loss"].backward(retain_graph=True)
    assert vectors.grad is None
    assert quantizer.codebook.grad is not None
    # d/dcode of (code - vector)^2 / 2 numbers; the unused code gets none
    assert quantizer.codebook.grad.tolist() == [[-1.0, 0.0], [0.0, 0.0]]

    quantizer.codebook.grad = None
    losses["commitment_loss"].backward()
    assert quantizer.codebook.grad is None
    assert vectors.grad is not None
    assert vectors.grad.flatten().tolist() == [1.0, 0.0]


def test_near_ties_are_decided_in_float32_under_autocast() -> None:
    # 1.001 and 1.002 are the same number in bfloat16.
    quantizer = quantizer_with([[1.0], [1.002]])

    with torch.autocast("cpu", torch.bfloat16):
        vectors = grid([[1.0015]])
        codes, trained = quantizer.nearest(vectors), quantizer(vectors)

    assert codes.item() == trained.codes.item() == 1
    assert trained.vectors.dtype == torch.float32


def test_equally_near_codes_give_the_lowest_index() -> None:
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])

    assert nearest_codes(torch.zeros(3, 2), codebook).tolist() == [1, 1, 1]
    assert nearest_codes(torch.tensor([[2.0, 0.0]]), codebook).tolist() == [1]


@pytest.mark.parametrize("max_elements", [1, 7 * 16, 1 << 24])
def test_parts_of_the_table_give_the_codes_of_the_whole(max_elements: int) -> None:
    random = torch.Generator().manual_seed(0)
    rows, codebook = (torch.randn(n, 4, generator=random) for n in (100, 16))

    codes = nearest_codes(rows, codebook, max_elements=max_elements)

    assert torch.equal(codes, torch.cdist(rows, codebook).argmin(dim=1))
