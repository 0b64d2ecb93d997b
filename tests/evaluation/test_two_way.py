"""The gradients of both directions are compared without loss weights."""

import math

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.model import ObjectiveConfig
from ernie_vilg.evaluation.two_way import (
    GROUPS,
    MIN_SHARE,
    Agreement,
    TwoWay,
    agreement_of,
    compare_directions,
    group_of,
    suggested_weights,
)
from ernie_vilg.generation.decode import StoppedError
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.loss import Objective
from ernie_vilg.vocabulary import PADDING_ID
from tests.model.tiny import CONFIG, tiny_model, tiny_pairs

TOLERANCE = {"rel": 1e-5}  # float32 sums in another order


def gradient_by_backward(**weights: float) -> dict[str, Tensor | None]:
    """Differentiate the training objective with given weights as training does."""
    model, (text, codes) = tiny_model(), tiny_pairs()
    count = (text != PADDING_ID).sum()[None].float()
    losses = Objective(ObjectiveConfig(**weights), SINGLE_DEVICE)(
        model((text, codes)), (text, codes, count)
    )
    losses.total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def measured(batch_size: int = 8) -> TwoWay:
    return compare_directions(tiny_model(), CONFIG, tiny_pairs(), batch_size=batch_size)


def test_cosine_and_norms_are_those_of_the_training_objective_with_one_weight_at_zero() -> None:
    one = gradient_by_backward(text_to_image_weight=1.0, image_to_text_weight=0.0)
    other = gradient_by_backward(text_to_image_weight=0.0, image_to_text_weight=1.0)
    # A parameter that one direction alone uses gets a gradient of zeros from the other.
    shared = [name for name in one if not name.endswith(("_logits.weight", "_logits.bias"))]
    first = torch.cat([one[name].flatten() for name in shared]).double()  # type: ignore[union-attr]
    second = torch.cat([other[name].flatten() for name in shared]).double()  # type: ignore[union-attr]

    whole = measured().whole

    assert whole.text_to_image_norm == pytest.approx(float(first.norm()), **TOLERANCE)
    assert whole.image_to_text_norm == pytest.approx(float(second.norm()), **TOLERANCE)
    expected = float(first @ second / first.norm() / second.norm())
    assert whole.cosine == pytest.approx(expected, rel=1e-4)


def test_how_the_pairs_are_cut_into_passes_changes_nothing() -> None:
    at_once, one_by_one = measured(), measured(batch_size=1)

    assert one_by_one.whole.cosine == pytest.approx(at_once.whole.cosine, rel=1e-4)
    assert one_by_one.text_to_image_loss == pytest.approx(at_once.text_to_image_loss, **TOLERANCE)
    assert one_by_one.image_to_text_loss == pytest.approx(at_once.image_to_text_loss, **TOLERANCE)


def test_parts_of_the_model_add_up_to_the_whole() -> None:
    health = measured()

    assert set(health.groups) == set(GROUPS) - {"late_blocks"}  # the tiny model has two blocks
    squares = sum(part.text_to_image_norm**2 for part in health.groups.values())
    assert math.sqrt(squares) == pytest.approx(health.whole.text_to_image_norm, **TOLERANCE)


@pytest.mark.parametrize(
    ("one", "other", "cosine"),
    [
        pytest.param([3.0, 4.0], [4.0, 3.0], 24 / 25, id="24 over 5 times 5"),
        pytest.param([3.0, 4.0], [-3.0, -4.0], -1.0, id="against each other"),
        pytest.param([3.0, 4.0], [-8.0, 6.0], 0.0, id="at right angles"),
        pytest.param([3.0, 4.0], [0.0, 0.0], 0.0, id="no gradient has no direction"),
    ],
)
def test_cosine_by_hand(one: list[float], other: list[float], cosine: float) -> None:
    alone = torch.ones(7)  # a parameter of only one direction does not count

    found = agreement_of([[torch.tensor(one), alone], [torch.tensor(other), None]])

    assert found.cosine == pytest.approx(cosine)
    assert found.text_to_image_norm == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [
        (3, ["early_blocks", "middle_blocks", "late_blocks"]),
        (4, ["early_blocks", "early_blocks", "middle_blocks", "late_blocks"]),
    ],
)
def test_blocks_are_cut_into_thirds(num_layers: int, expected: list[str]) -> None:
    names = [f"{index}.norm.weight" for index in range(num_layers + 2)]

    found = [group_of(name, num_layers) for name in names]

    assert found == ["embedding", *expected, "head"]


def agreement(text_to_image: float, image_to_text: float) -> Agreement:
    return Agreement(cosine=0.0, text_to_image_norm=text_to_image, image_to_text_norm=image_to_text)


@pytest.mark.parametrize(
    ("norms", "present", "suggested"),
    [
        pytest.param((3.0, 1.0), (1.0, 1.0), (0.5, 1.5), id="0.5 * 3 = 1.5 * 1"),
        pytest.param((1.0, 1.0), (3.0, 1.0), (2.0, 2.0), id="the sum is kept"),
        pytest.param(
            (1.0, 1e9), (1.0, 1.0), (2 - 2 * MIN_SHARE, 2 * MIN_SHARE), id="none is given up"
        ),
        pytest.param((0.0, 0.0), (3.0, 1.0), (3.0, 1.0), id="no gradient, no suggestion"),
        pytest.param((math.nan, 1.0), (3.0, 1.0), (3.0, 1.0), id="not a number"),
    ],
)
def test_suggested_weights_make_both_gradients_equally_long(
    norms: tuple[float, float], present: tuple[float, float], suggested: tuple[float, float]
) -> None:
    objective = ObjectiveConfig(text_to_image_weight=present[0], image_to_text_weight=present[1])

    assert suggested_weights(agreement(*norms), objective) == pytest.approx(suggested)


def test_it_ends_when_asked_to() -> None:
    with pytest.raises(StoppedError):
        compare_directions(tiny_model(), CONFIG, tiny_pairs(), should_stop=lambda: True)
