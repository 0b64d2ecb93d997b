"""The loss counts target tokens, and weighs the directions."""

import math

import pytest
import torch

from ernie_vilg.config.model import ObjectiveConfig
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.loss import Losses, Objective


def losses_of_two_pairs(config: ObjectiveConfig, mean_text_targets: float = 3.0) -> Losses:
    """Two pairs, two codes each of a codebook of 2; three pieces and one padding, of 4."""
    image_logits = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.5, 0.5], [0.5, 0.5]]]))
    text_logits = torch.zeros(2, 2, 4)
    text = torch.tensor([[2, 3], [1, 0]])  # 0 is padding
    codes = torch.tensor([[0, 0], [1, 0]])
    targets = (text, codes, torch.tensor([mean_text_targets]))
    return Objective(config, SINGLE_DEVICE)((image_logits, text_logits), targets)


def test_each_direction_is_a_mean_over_its_targets() -> None:
    losses = losses_of_two_pairs(ObjectiveConfig())

    assert losses.text_to_image.item() == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
    assert losses.image_to_text.item() == pytest.approx(math.log(4))


def test_text_is_divided_by_the_steps_mean_count() -> None:
    losses = losses_of_two_pairs(ObjectiveConfig(), mean_text_targets=6.0)

    assert losses.image_to_text.item() == pytest.approx(math.log(4) / 2)


def test_directions_are_weighted() -> None:
    losses = losses_of_two_pairs(
        ObjectiveConfig(text_to_image_weight=2.0, image_to_text_weight=0.5)
    )

    expected = 2 * losses.text_to_image + 0.5 * losses.image_to_text
    assert losses.total.item() == pytest.approx(expected.item())
