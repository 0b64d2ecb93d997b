"""The loss counts target tokens and weights the directions."""

import math

import pytest
import torch

from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.model.head import HeadOutput
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.loss import Losses, Objective, num_losses, sample_losses, text_targets
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID, END_OF_TEXT_ID, PADDING_ID


def tiny_model(*, image_grid_size: int, text_length: int) -> ModelConfig:
    return ModelConfig(
        hidden_size=4,
        num_layers=1,
        num_heads=1,
        text_vocab_size=8,
        text_length=text_length,
        codebook_size=4,
        image_grid_size=image_grid_size,
    )


def losses_of_two_pairs(config: ObjectiveConfig, mean_text_targets: float = 3.0) -> Losses:
    """Two pairs, two codes each of a codebook of 2; three pieces and one padding, of 4."""
    image_logits = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.5, 0.5], [0.5, 0.5]]]))
    text_logits = torch.zeros(2, 2, 4)
    text = torch.tensor([[1, 3], [1, 0]])  # 0 is padding
    codes = torch.tensor([[0, 0], [1, 0]])
    targets = (text, codes, torch.tensor([mean_text_targets]))
    return Objective(config, SINGLE_DEVICE)(HeadOutput(image_logits, text_logits), targets)


def test_each_direction_is_a_mean_over_its_targets() -> None:
    losses = losses_of_two_pairs(ObjectiveConfig())

    assert losses.text_to_image.item() == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
    assert losses.image_to_text.item() == pytest.approx(math.log(4))


def test_rows_and_slots_are_means_of_their_own_targets() -> None:
    """Two pairs with a grid of 2 x 2 codes and 3 text slots; padding never counts."""
    sure, half = [0.0, -torch.inf], [math.log(0.5)] * 2  # nats of code 0: 0 and log 2
    image_logits = torch.tensor([[sure, half, half, half], [sure, sure, half, half]])
    text_logits = torch.zeros(2, 3, 4)
    text_logits[0, 1] = torch.tensor([0.0, math.log(2), 0.0, 0.0])
    text = torch.tensor([[1, 1, 0], [3, 0, 0]])
    codes = torch.zeros(2, 4, dtype=torch.int64)

    losses = Objective(ObjectiveConfig(), SINGLE_DEVICE)(
        HeadOutput(image_logits, text_logits), (text, codes, torch.tensor([3.0]))
    )

    # One of four codes in the first row is a toss-up, all four in the second.
    assert losses.by_image_row.tolist() == pytest.approx([math.log(2) / 4, math.log(2)])
    # Both pairs have a first piece, only the first pair a second (2 of 5 parts), none a third.
    assert losses.by_text_position.tolist() == pytest.approx([math.log(4), math.log(2.5) / 2, 0])
    assert losses.text_position_share.tolist() == [1.0, 0.5, 0.0]


def test_the_vector_is_the_terms_then_rows_then_slots() -> None:
    losses = losses_of_two_pairs(ObjectiveConfig())

    vector = losses.detached()

    terms = [losses.total, losses.text_to_image, losses.image_to_text, losses.reconstruction]
    assert vector[:4].tolist() == [term.item() for term in terms]
    assert vector[4:].tolist() == [
        *losses.by_image_row.tolist(),
        *losses.by_text_position.tolist(),
        *losses.text_position_share.tolist(),
    ]


def test_the_vector_has_the_length_that_the_model_says() -> None:
    config = tiny_model(image_grid_size=3, text_length=5)
    text = torch.ones(2, 5, dtype=torch.int64)
    codes = torch.zeros(2, 9, dtype=torch.int64)
    output = HeadOutput(torch.zeros(2, 9, 4), torch.zeros(2, 5, 8))

    losses = Objective(ObjectiveConfig(), SINGLE_DEVICE)(output, (text, codes, torch.ones(1)))

    assert len(losses.detached()) == num_losses(config) == 4 + 3 + 5 + 5


def test_text_is_divided_by_the_steps_mean_count() -> None:
    losses = losses_of_two_pairs(ObjectiveConfig(), mean_text_targets=6.0)

    assert losses.image_to_text.item() == pytest.approx(math.log(4) / 2)


def test_directions_are_weighted() -> None:
    losses = losses_of_two_pairs(
        ObjectiveConfig(text_to_image_weight=2.0, image_to_text_weight=0.5)
    )

    expected = 2 * losses.text_to_image + 0.5 * losses.image_to_text
    assert losses.total.item() == pytest.approx(expected.item())


def test_z_loss_is_the_mean_squared_log_of_the_softmaxs_denominator() -> None:
    without = losses_of_two_pairs(ObjectiveConfig())
    losses = losses_of_two_pairs(ObjectiveConfig(z_loss_weight=0.5))

    # Image logits are log-probabilities: their denominator is 1. Text logits are four zeros.
    expected = without.total + 0.5 * math.log(4) ** 2
    assert losses.total.item() == pytest.approx(expected.item())


def test_reconstruction_is_weighted_absolute_and_squared_error() -> None:
    config = ObjectiveConfig(
        reconstruction_weight=2.0, absolute_error_weight=1.0, squared_error_weight=3.0
    )
    zeros = torch.zeros(1, 1, 4)
    output = HeadOutput(zeros, zeros, pixels=torch.full((1, 3, 2, 2), 0.5))
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)  # 1.0
    ids = torch.zeros(1, 1, dtype=torch.int64)

    losses = Objective(config, SINGLE_DEVICE)(output, (ids, ids, torch.ones(1), white))

    assert losses.reconstruction.item() == pytest.approx(0.5 + 3 * 0.25)
    assert losses.total.item() == pytest.approx(math.log(4) + 2 * losses.reconstruction.item())


def test_a_question_gives_no_loss_and_no_gradient() -> None:
    """A pair with question, begin of text, answer, end of text; and one with a caption."""
    text = torch.tensor([[5, 6, 2, 7, 3, 0], [5, 3, 0, 0, 0, 0]])
    other = torch.tensor([[4, 1, 2, 7, 3, 0], [5, 3, 0, 0, 0, 0]])  # another question
    codes = torch.zeros(2, 4, dtype=torch.int64)
    logits = torch.arange(96.0).sin().view(2, 6, 8).requires_grad_()
    output = HeadOutput(torch.zeros(2, 4, 4), logits)
    objective = Objective(ObjectiveConfig(z_loss_weight=0.1), SINGLE_DEVICE)
    count = torch.tensor([4.0])

    losses = [objective(output, (given, codes, count)) for given in (text, other)]
    losses[0].total.backward()

    assert losses[0].total == losses[1].total
    nats = -logits.log_softmax(-1)
    expected = nats[0, 3, 7] + nats[0, 4, 3] + nats[1, 0, 5] + nats[1, 1, 3]
    assert losses[0].image_to_text.item() == pytest.approx(expected.item() / 4)
    assert losses[0].text_position_share.tolist() == [0.5, 0.5, 0, 0.5, 0.5, 0]
    assert logits.grad is not None
    has_gradient = logits.grad.abs().sum(-1) > 0
    assert has_gradient.int().tolist() == [[0, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0]]

    of_samples = sample_losses(output, text, codes)[1]
    assert of_samples[0].item() == pytest.approx((nats[0, 3, 7] + nats[0, 4, 3]).item() / 2)
    sums = objective.sums(output, (text, codes, torch.tensor([1])))
    assert sums[-6:].tolist() == [0, 0, 0, 1, 1, 0]
    assert sums[-12:-6].sum().item() == pytest.approx((nats[0, 3, 7] + nats[0, 4, 3]).item())


def test_targets_are_a_caption_or_the_answer_alone() -> None:
    rows = [
        ([7, 8, END_OF_TEXT_ID, PADDING_ID, PADDING_ID], [1, 1, 1, 0, 0]),
        ([END_OF_TEXT_ID, PADDING_ID, PADDING_ID, PADDING_ID, PADDING_ID], [1, 0, 0, 0, 0]),
        ([7, BEGIN_OF_TEXT_ID, 8, END_OF_TEXT_ID, PADDING_ID], [0, 0, 1, 1, 0]),
        ([BEGIN_OF_TEXT_ID, 7, 8, 9, 10], [0, 1, 1, 1, 1]),
    ]
    text = [slots for slots, _ in rows]
    expected = [targets for _, targets in rows]

    assert text_targets(torch.tensor(text)).int().tolist() == expected
