"""Pictures use a fraction of the codebook, more or less evenly."""

import math

import pytest
import torch

from ernie_vilg.evaluation.codebook import code_figures


def test_codes_of_all_pictures_are_counted_together() -> None:
    codes = [torch.tensor([[0, 0], [1, 1]]), torch.tensor([[2, 2], [3, 3]])]

    figures = code_figures(codes, codebook_size=16)

    assert figures["codebook_usage"] == 4 / 16
    assert figures["perplexity"] == pytest.approx(4)
    assert figures["code_entropy"] == pytest.approx(math.log(4))


def test_one_code_for_everything_has_no_entropy() -> None:
    figures = code_figures([torch.full((2, 2), 7)], codebook_size=8)

    assert figures == {"codebook_usage": 1 / 8, "perplexity": 1.0, "code_entropy": 0.0}
