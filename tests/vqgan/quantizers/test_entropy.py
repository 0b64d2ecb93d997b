"""The entropy term is small where choices are sure and codes equally frequent."""

import math

import pytest
import torch

from ernie_vilg.vqgan.quantizers.entropy import entropy_loss
from tests.vqgan.quantizers.made import random_grid

CODES = torch.tensor([[-1.0], [1.0]])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([[-1.0], [1.0]], -math.log(2), id="sure and even"),
        pytest.param([[1.0], [1.0]], 0.0, id="sure, but one code for all"),
        pytest.param([[0.0], [0.0]], 0.0, id="even, but each undecided"),
    ],
)
def test_extremes(rows: list[list[float]], expected: float) -> None:
    loss = entropy_loss(torch.tensor(rows), CODES, temperature=0.01)

    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_value_by_hand() -> None:
    # Squared distances of 0.5 to -1 and 1: 2.25 and 0.25; at temperature 2 odds of e to 1.
    sure = math.e / (1 + math.e)
    each = -sure * math.log(sure) - (1 - sure) * math.log(1 - sure)
    rows = torch.tensor([[0.5], [-0.5], [0.5], [0.5]])
    mean = (3 * sure + (1 - sure)) / 4
    both = -mean * math.log(mean) - (1 - mean) * math.log(1 - mean)

    assert entropy_loss(rows, CODES, 2.0).item() == pytest.approx(each - both, abs=1e-6)


def test_parts_of_the_table_give_loss_and_gradients_of_the_whole() -> None:
    rows, codebook = random_grid(40, 3).requires_grad_(), random_grid(8, 3, seed=1).requires_grad_()

    whole = entropy_loss(rows, codebook, 0.5)
    parts = entropy_loss(rows, codebook, 0.5, max_elements=8 * 7)

    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(
        torch.autograd.grad(parts, (rows, codebook)), torch.autograd.grad(whole, (rows, codebook))
    )


def test_gradient_is_that_of_finite_differences() -> None:
    rows, codebook = (random_grid(n, 2, seed=n).double().requires_grad_() for n in (5, 3))

    assert torch.autograd.gradcheck(lambda *args: entropy_loss(*args, 0.7), (rows, codebook))


@pytest.mark.parametrize("position", [1.0, 1000.0])
def test_codes_that_no_row_is_near_give_no_nan(position: float) -> None:
    rows, codebook = torch.full((2, 1), position).requires_grad_(), CODES.clone().requires_grad_()

    loss = entropy_loss(rows, codebook, 0.01)
    loss.backward()

    assert loss.item() == 0
    assert rows.grad is not None
    assert codebook.grad is not None
    assert rows.grad.flatten().tolist() == [0.0, 0.0]
    assert codebook.grad.flatten().tolist() == [0.0, 0.0]
