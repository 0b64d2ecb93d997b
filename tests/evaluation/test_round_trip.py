"""Round trips return what a model knows, and show the leg that fails."""

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ernie_vilg.evaluation.round_trip import (
    RoundTrips,
    agreement_of_captions,
    mean_log_likelihoods,
    rouge_l,
    take_round_trips,
)
from ernie_vilg.generation.decode import StoppedError, TokenGenerator
from ernie_vilg.generation.likelihood import Likelihood
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.vocabulary import END_OF_TEXT_ID, PADDING_ID
from tests.evaluation.trained import trained_model
from tests.model.tiny import CONFIG, tiny_model, tiny_pairs


def pipeline_of(model: nn.Sequential) -> Any:
    """Return the parts of an `ErnieVilg` that work on ids and codes."""
    return SimpleNamespace(
        token_generator=TokenGenerator(model, CONFIG), likelihood=Likelihood(model, CONFIG)
    )


def trips_of(model: nn.Sequential, text: Tensor, codes: Tensor) -> RoundTrips:
    return take_round_trips(pipeline_of(model), text, codes, temperature=0.0)


def test_a_model_that_knows_its_pairs_comes_back_with_them() -> None:
    model, (text, codes) = trained_model()

    trips = trips_of(model, text, codes)

    assert trips.written.equal(text)
    assert trips.rewritten.equal(text)
    assert trips.drawn.codes.equal(codes)
    assert trips.redrawn.codes.equal(codes)
    torch.testing.assert_close(trips.text_given_drawing, trips.text_given_image)
    torch.testing.assert_close(trips.image_given_writing, trips.image_given_text)


def test_a_model_that_cannot_draw_loses_the_caption_and_keeps_the_reference() -> None:
    model, (text, codes) = trained_model()
    before = trips_of(model, text, codes)
    with torch.no_grad():
        model[-1].image_logits.bias[3] += 100.0  # it draws code 3 everywhere

    after = trips_of(model, text, codes)

    assert (after.drawn.codes == 3).all()
    assert after.text_given_image.equal(before.text_given_image)
    assert (after.text_given_drawing < after.text_given_image - 1.0).any()


def test_a_model_that_cannot_write_loses_the_picture_and_keeps_the_reference() -> None:
    model, (text, codes) = trained_model()
    before = trips_of(model, text, codes)
    with torch.no_grad():
        model[-1].text_logits.bias[END_OF_TEXT_ID] += 100.0  # it writes nothing

    after = trips_of(model, text, codes)

    assert after.written.tolist() == [[END_OF_TEXT_ID] + [PADDING_ID] * 4] * 3
    assert after.image_given_text.equal(before.image_given_text)
    assert (after.image_given_writing < after.image_given_text - 1.0).any()


def test_log_likelihoods_are_means_over_codes_and_over_pieces_without_padding() -> None:
    model, (text, codes) = tiny_model(), tiny_pairs()

    of_codes, of_pieces = (
        mean_log_likelihoods(pipeline_of(model), direction, text, codes) for direction in Direction
    )

    with torch.no_grad():
        output = model((text, codes))
    image = output.image_logits.log_softmax(dim=-1)
    pieces = output.text_logits.log_softmax(dim=-1)
    # The first caption is one piece, 7, and the end of text.
    first = (pieces[0, 0, 7] + pieces[0, 1, END_OF_TEXT_ID]) / 2
    assert float(of_pieces[0]) == pytest.approx(float(first), rel=1e-5)
    by_slot = [float(image[0, slot, codes[0, slot]]) for slot in range(4)]
    assert float(of_codes[0]) == pytest.approx(sum(by_slot) / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param([5, 6, 7], [5, 6, 7], 1.0, id="alike"),
        pytest.param([5, 6, 7], [8, 9], 0.0, id="nothing in common"),
        pytest.param([5, 6, 7, 8], [5, 7], 4 / 6, id="a subsequence of 2: 2 * 2 / (4 + 2)"),
        pytest.param([5, 6, 7], [7, 6, 5], 2 / 6, id="order counts: 2 * 1 / (3 + 3)"),
        pytest.param([5, 5, 6], [5, 6, 6], 4 / 6, id="repeats count once each"),
        pytest.param([], [], 1.0, id="both empty"),
        pytest.param([], [5], 0.0, id="one empty"),
    ],
)
def test_rouge_l_by_hand(one: list[int], other: list[int], expected: float) -> None:
    assert rouge_l(one, other) == pytest.approx(expected)
    assert rouge_l(other, one) == pytest.approx(expected)


def test_captions_agree_up_to_their_end() -> None:
    captions = torch.tensor([[7, 8, END_OF_TEXT_ID, PADDING_ID], [5, 6, 7, 8]])
    others = torch.tensor([[7, 8, END_OF_TEXT_ID, PADDING_ID], [5, 7, END_OF_TEXT_ID, PADDING_ID]])

    assert agreement_of_captions(captions, others) == pytest.approx((1 + 4 / 6) / 2)


@pytest.mark.parametrize("polls", [1, 5, 9], ids=["at once", "in the first leg", "in the second"])
def test_it_ends_when_asked_to(polls: int) -> None:
    asked = count(1)

    with pytest.raises(StoppedError):
        take_round_trips(
            pipeline_of(tiny_model()),
            *tiny_pairs(),
            temperature=0.0,
            should_stop=lambda: next(asked) >= polls,
        )

    assert next(asked) == polls + 1  # nothing is asked after the answer
