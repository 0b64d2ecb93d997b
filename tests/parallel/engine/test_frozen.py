"""Patterns choose the parameters that keep their value."""

from dataclasses import replace

import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.parallel.engine.optimizer import is_frozen, num_trained
from tests.model.tiny import CONFIG

SIZES = {"0.text_embedding.weight": 8, "1.attention.output.weight": 4, "2.norm.bias": 2}


def test_the_others_are_counted() -> None:
    assert num_trained(SIZES, CONFIG, ["*.text_embedding.*", "*attention*"]) == 2
    assert num_trained(SIZES, CONFIG, []) == 14


def test_a_tied_projection_is_frozen_with_its_table() -> None:
    tied = replace(CONFIG, tied_embeddings=True)

    assert is_frozen("2.text_logits.weight", tied, ["0.text_embedding.*"])
    assert not is_frozen("2.text_logits.bias", tied, ["0.text_embedding.*"])
    assert not is_frozen("2.text_logits.weight", CONFIG, ["0.text_embedding.*"])


def test_a_pattern_without_a_match_is_refused_with_near_names() -> None:
    with pytest.raises(
        InputError,
        match=r"frozen=text_embeding matches no parameter: .* such as 0\.text_embedding\.weight",
    ):
        num_trained(SIZES, CONFIG, ["text_embeding"])


def test_a_model_without_a_trained_parameter_is_refused() -> None:
    with pytest.raises(InputError, match=r"frozen=\* matches all 3 parameters"):
        num_trained(SIZES, CONFIG, ["*"])
