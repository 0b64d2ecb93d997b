"""Adversarial terms, their schedule and their averages equal what is worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from ernie_vilg.config.tokenizer_objective import AdversarialConfig
from ernie_vilg.errors import InputError
from ernie_vilg.vqgan.discriminator import PatchDiscriminator
from ernie_vilg.vqgan.losses.adversarial import (
    LogitAverages,
    adaptive_factor,
    adversarial_weight,
    discriminator_loss,
    generator_loss,
    trains_discriminator,
)

YES, NO = torch.tensor(True), torch.tensor(False)


def alone(tensor: Tensor) -> Tensor:
    return tensor


def test_discriminator_trains_before_its_term_counts_and_the_weight_rises() -> None:
    config = AdversarialConfig(weight=0.8, train_from_step=2, start_step=4, warmup_steps=3)

    assert [trains_discriminator(step, config) for step in range(4)] == [False, False, True, True]
    weights = [adversarial_weight(step, config) for step in range(9)]
    assert weights == pytest.approx([0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 0.8])


def test_weight_of_zero_trains_no_discriminator() -> None:
    assert not trains_discriminator(10, AdversarialConfig(weight=0.0))
    assert adversarial_weight(10, AdversarialConfig(weight=0.0)) == 0


def test_term_may_not_count_before_the_discriminator_trains() -> None:
    with pytest.raises(InputError, match=r"start_step=1 comes before .*train_from_step=2"):
        AdversarialConfig(weight=1.0, start_step=1, train_from_step=2)


def test_hinge_losses() -> None:
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 1.0])

    # Originals: 0.5 and 0; reconstructions: 0 and 2.
    assert discriminator_loss(real, fake, "hinge").item() == 0.5 * (0.25 + 1.0)
    assert generator_loss(fake, "hinge").item() == 1.0


def test_non_saturating_losses_are_cross_entropies() -> None:
    real, fake = torch.tensor([math.log(3)]), torch.tensor([-math.log(4)])

    # Probability of an original: 3/4 and 1/5.
    expected = -0.5 * (math.log(3 / 4) + math.log(4 / 5))
    assert discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(expected)
    assert generator_loss(fake, "non_saturating").item() == pytest.approx(-math.log(1 / 5))


def test_adaptive_factor_is_the_ratio_of_gradient_norms() -> None:
    weight = torch.tensor([1.0, 1.0], requires_grad=True)
    other, adversarial = (torch.tensor([3.0, 4.0]) * weight).sum(), 2 * weight[0]

    factor = adaptive_factor(other, adversarial, weight, largest=1e4, average=alone)

    assert factor.item() == pytest.approx(5 / 2, rel=1e-4)
    assert not factor.requires_grad


def test_adaptive_factor_is_bounded() -> None:
    weight = torch.tensor([1.0], requires_grad=True)

    factor = adaptive_factor(weight.sum(), 0 * weight.sum(), weight, largest=100.0, average=alone)

    assert factor.item() == 100


def test_adaptive_factor_of_ranks_is_that_of_mean_gradients() -> None:
    weight = torch.tensor([1.0, 1.0], requires_grad=True)
    # The other rank's gradients; their mean with this rank's: [3, 4] and [1, 0].
    others = torch.tensor([[0.0, 8.0], [2.0, 0.0]])
    other, adversarial = 6 * weight[0], 0 * weight.sum()

    factor = adaptive_factor(
        other, adversarial, weight, largest=1e4, average=lambda tensor: (tensor + others) / 2
    )

    assert factor.item() == pytest.approx(5, rel=1e-3)


def test_averages_begin_at_the_first_means_and_then_move_slowly() -> None:
    averages = LogitAverages(decay=0.75)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -1.0])

    averages.update(LogitAverages.statistics(real, fake), YES)
    assert averages.averages.tolist() == [2.0, -1.0]
    averages.update(LogitAverages.statistics(real + 4, fake), YES)
    assert averages.averages.tolist() == [3.0, -1.0]


def test_statistics_of_halves_add_up_to_those_of_the_whole() -> None:
    real, fake = torch.arange(4.0), torch.arange(4.0) - 10

    halves = [LogitAverages.statistics(real[part], fake[part]) for part in (slice(2), slice(2, 4))]

    assert torch.equal(sum(halves[1:], halves[0]), LogitAverages.statistics(real, fake))


def test_skipped_step_leaves_the_averages_as_they_are() -> None:
    averages = LogitAverages(decay=0.5)
    averages.update(torch.tensor([2.0, 4.0, 2.0]), YES)

    averages.update(torch.tensor([math.nan, math.inf, 2.0]), NO)

    assert averages.averages.tolist() == [1.0, 2.0]
    assert averages.updates.item() == 1


def test_lecam_counts_logits_beyond_the_other_sides_average() -> None:
    averages = LogitAverages(decay=0.5)
    real, fake = torch.tensor([0.0, 4.0]), torch.tensor([0.0, 4.0])
    assert averages.penalty(real, fake).item() == 0  # no average yet

    averages.update(torch.tensor([3.0, 1.0, 1.0]), YES)

    # Originals above the fake average 1: 0 and 3; reconstructions below the real one, 3: 3 and 0.
    assert averages.penalty(real, fake).item() == 4.5 + 4.5


@pytest.mark.parametrize(
    ("image_size", "num_layers", "message"),
    [
        pytest.param(16, 3, "set num_layers to at most 2", id="too deep"),
        pytest.param(5, 1, "set weight=0", id="too small for any"),
    ],
)
def test_pictures_without_a_logit_are_refused(
    image_size: int, num_layers: int, message: str
) -> None:
    config = AdversarialConfig(weight=1.0, num_layers=num_layers)

    with pytest.raises(InputError, match=message):
        config.check_image_size(image_size)


@pytest.mark.parametrize(("image_size", "num_layers"), [(24, 3), (31, 3), (6, 1), (64, 4)])
def test_smallest_pictures_have_a_logit(image_size: int, num_layers: int) -> None:
    AdversarialConfig(weight=1.0, num_layers=num_layers).check_image_size(image_size)

    logits = PatchDiscriminator(4, num_layers)(torch.zeros(1, 3, image_size, image_size))
    assert logits.numel() > 0
