"""Usage and perplexity say how evenly codes are used."""

import math

import pytest
import torch

from ernie_vilg.vqgan.quantizers.usage import codebook_figures, codebook_usage


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


def test_figures_of_use() -> None:
    figures = codebook_figures(torch.tensor([5, 5, 0, 0]))

    assert figures == {"codebook_usage": 0.5, "perplexity": pytest.approx(2.0), "dead_codes": 2.0}
