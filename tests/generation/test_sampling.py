"""Tokens are sampled from logits by temperature and top-k."""

import pytest
import torch

from ernie_vilg.generation.randomness import uniforms
from ernie_vilg.generation.sampling import Sampling, choose_tokens

LOGITS = torch.log(torch.tensor([[0.1, 0.6, 0.3]]))


def draw(sampling: Sampling, count: int) -> list[int]:
    ids, _ = choose_tokens(LOGITS.expand(count, -1), sampling, uniforms([0], [b""], count)[0])
    return ids.tolist()


def test_greedy_takes_the_likeliest() -> None:
    assert draw(Sampling(), 5) == [1] * 5


def test_samples_follow_the_probabilities() -> None:
    ids = draw(Sampling(temperature=1.0), 2000)

    # Three standard deviations of 2,000 draws.
    assert ids.count(1) / 2000 == pytest.approx(0.6, abs=0.033)
    assert ids.count(0) / 2000 == pytest.approx(0.1, abs=0.021)


def test_top_k_leaves_the_rest_out() -> None:
    assert set(draw(Sampling(temperature=1.0, top_k=2), 300)) == {1, 2}


def test_log_probability_is_the_models_own() -> None:
    _, log_probability = choose_tokens(LOGITS, Sampling(temperature=0.0), torch.zeros(1))

    assert log_probability.exp().item() == pytest.approx(0.6)


@pytest.mark.parametrize("setting", ["temperature", "top_k"])
def test_negative_settings_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}=-1"):
        Sampling(**{setting: -1})


@pytest.mark.parametrize(
    ("uniform", "chosen"),
    [(0.0, 0), (0.099, 0), (0.101, 1), (0.699, 1), (0.701, 2), (1 - 2.0**-53, 2)],
)
def test_a_number_chooses_the_token_whose_share_it_lies_in(uniform: float, chosen: int) -> None:
    # The tokens span 0 to 0.1, to 0.7 and to 1.
    numbers = torch.tensor([uniform], dtype=torch.float64)

    ids, _ = choose_tokens(LOGITS, Sampling(temperature=1.0), numbers)

    assert ids.tolist() == [chosen]
