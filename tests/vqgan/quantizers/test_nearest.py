"""Each vector becomes its nearest code, and the codebook starts and stays in use."""

import math

import pytest
import torch
from torch import Tensor

from ernie_vilg.vqgan.quantizers.nearest import VectorQuantizer, choose_spread_rows, codebook_usage


def quantizer_with(codebook: list[list[float]]) -> VectorQuantizer:
    rows = torch.tensor(codebook)
    quantizer = VectorQuantizer(*rows.shape)
    with torch.no_grad():
        quantizer.codebook.copy_(rows)
    return quantizer


def grid(rows: list[list[float]]) -> Tensor:
    """One row of positions: [1, embedding, 1, positions]."""
    return torch.tensor(rows).t()[None, :, None, :]


def test_nearest_code_by_distance() -> None:
    quantizer = quantizer_with([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])

    codes = quantizer.nearest(grid([[3.0, 0.5], [0.5, 0.5], [1.0, 2.5]]))

    assert codes.dtype == torch.int64
    assert codes.tolist() == [[[1, 0, 2]]]


def test_lookup_inverts_nearest() -> None:
    quantizer = quantizer_with([[0.0, 1.0], [2.0, 3.0]])

    vectors = quantizer.lookup(torch.tensor([[[1, 0]]]))

    assert torch.equal(vectors, grid([[2.0, 3.0], [0.0, 1.0]]))


def test_losses_are_the_mean_squared_distance() -> None:
    quantizer = quantizer_with([[0.0, 0.0]])

    quantized = quantizer(grid([[1.0, 0.0], [0.0, 3.0]]))

    expected = (1 + 9) / 4  # 4 numbers
    assert quantized.codebook_loss.item() == expected
    assert quantized.commitment_loss.item() == expected


def test_gradient_passes_straight_through_to_the_encoder() -> None:
    vectors = grid([[1.0, 0.0]]).requires_grad_()

    quantized = quantizer_with([[5.0, 5.0]])(vectors)
    (quantized.vectors * grid([[2.0, 3.0]])).sum().backward()

    assert vectors.grad is not None
    assert vectors.grad.flatten().tolist() == [2.0, 3.0]


def test_codebook_loss_moves_codes_only_and_commitment_vectors_only() -> None:
    quantizer = quantizer_with([[0.0, 0.0], [9.0, 9.0]])
    vectors = grid([[1.0, 0.0]]).requires_grad_()

    quantized = quantizer(vectors)
    quantized.codebook_loss.backward(retain_graph=True)
    assert vectors.grad is None
    assert quantizer.codebook.grad is not None
    # d/dcode of (code - vector)^2 / 2 numbers; the unused code gets none
    assert quantizer.codebook.grad.tolist() == [[-1.0, 0.0], [0.0, 0.0]]

    quantizer.codebook.grad = None
    quantized.commitment_loss.backward()
    assert quantizer.codebook.grad is None
    assert vectors.grad is not None
    assert vectors.grad.flatten().tolist() == [1.0, 0.0]


def test_near_ties_are_decided_in_float32_under_autocast() -> None:
    # 1.001 and 1.002 are the same number in bfloat16.
    quantizer = quantizer_with([[1.0], [1.002]])

    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer.nearest(torch.tensor([1.0015]).view(1, 1, 1, 1))

    assert codes.item() == 1


def test_chosen_rows_are_all_different_while_there_are_different_ones() -> None:
    rows = torch.tensor([[0.0], [0.0], [0.0], [1.0], [5.0], [5.0]])

    chosen = choose_spread_rows(rows, 3, torch.Generator().manual_seed(0))

    assert sorted(chosen.flatten().tolist()) == [0.0, 1.0, 5.0]


def test_chosen_rows_avoid_codes_that_stay() -> None:
    rows = torch.tensor([[0.0], [7.0], [0.0]])

    chosen = choose_spread_rows(
        rows, 1, torch.Generator().manual_seed(0), codebook=torch.tensor([[0.0]])
    )

    assert chosen.tolist() == [[7.0]]


def test_more_codes_than_different_rows_repeat_rows() -> None:
    rows = torch.tensor([[1.0], [2.0]])

    chosen = choose_spread_rows(rows, 5, torch.Generator().manual_seed(0))

    assert set(chosen.flatten().tolist()) == {1.0, 2.0}


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity"),
    [
        pytest.param([5, 5, 5, 5], 1.0, 4.0, id="evenly used"),
        pytest.param([9, 0, 0, 0], 0.25, 1.0, id="one code only"),
        pytest.param([0, 0], 0.0, 0.0, id="nothing counted yet"),
        pytest.param([2, 1, 1], 1.0, 2 * math.sqrt(2), id="entropy of 1/2, 1/4, 1/4: 1.5 bits"),
    ],
)
def test_codebook_usage(counts: list[int], usage: float, perplexity: float) -> None:
    measured = codebook_usage(torch.tensor(counts))

    assert measured == pytest.approx((usage, perplexity))
