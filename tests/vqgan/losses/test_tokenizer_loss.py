"""The tokenizer's loss has the terms of its settings, and is one loss over any split of a batch."""

import pytest
import torch
from torch import Tensor, nn

from ernie_vilg.config.tokenizer_objective import (
    AdversarialConfig,
    PerceptualConfig,
    TokenizerObjectiveConfig,
)
from ernie_vilg.vqgan.losses.tokenizer_loss import TokenizerLoss

CPU = torch.device("cpu")


def alone(tensor: Tensor) -> Tensor:
    return tensor


def loss_of(**adversarial: object) -> TokenizerLoss:
    torch.manual_seed(0)
    settings = {"weight": 0.5, "base_channels": 8, "num_layers": 2, **adversarial}
    config = TokenizerObjectiveConfig(
        absolute_error_weight=2.0,
        squared_error_weight=0.0,
        perceptual=PerceptualConfig(features="gradients", weight=0.25),
        adversarial=AdversarialConfig(**settings),  # type: ignore[arg-type]
    )
    return TokenizerLoss(config, CPU)


def example(count: int = 4) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(1)
    images = torch.rand(count, 3, 16, 16) * 2 - 1
    return nn.Conv2d(3, 3, 3, padding=1), images


def test_terms_are_weighted_and_named() -> None:
    decoder, images = example()
    loss = loss_of(start_step=5, train_from_step=2)
    reconstruction = decoder(images)

    early = loss.generator_terms(
        reconstruction, images, last_layer=decoder.weight, step=4, average=alone
    )
    late = loss.generator_terms(
        reconstruction, images, last_layer=decoder.weight, step=5, average=alone
    )

    error = (reconstruction - images).abs().mean()
    assert early.terms["reconstruction_loss"].item() == pytest.approx(2 * error.item(), rel=1e-5)
    assert list(early.terms) == ["reconstruction_loss", "perceptual_loss"]
    assert list(late.terms) == ["reconstruction_loss", "perceptual_loss", "adversarial_loss"]
    assert not loss.trains_discriminator(1)
    assert loss.trains_discriminator(2)


def test_adversarial_gradient_is_half_as_long_as_the_others_at_the_last_layer() -> None:
    decoder, images = example()
    terms, figures = loss_of(weight=0.5).generator_terms(
        decoder(images), images, last_layer=decoder.weight, step=0, average=alone
    )
    adversarial = terms.pop("adversarial_loss")

    lengths = [
        torch.autograd.grad(term, decoder.weight, retain_graph=True)[0].norm().item()
        for term in (adversarial, torch.stack(list(terms.values())).sum())
    ]

    # The small number in the denominator makes it a little shorter.
    assert lengths[0] == pytest.approx(0.5 * lengths[1], rel=2e-2)
    assert figures["adaptive_factor"] > 0


def test_tokenizer_terms_leave_the_discriminator_without_gradient() -> None:
    decoder, images = example()
    loss = loss_of()

    terms, _ = loss.generator_terms(
        decoder(images), images, last_layer=decoder.weight, step=0, average=alone
    )
    torch.stack(list(terms.values())).sum().backward()

    assert loss.discriminator is not None
    assert all(weight.grad is None for weight in loss.discriminator.parameters())


def test_discriminator_terms_leave_the_decoder_without_gradient() -> None:
    decoder, images = example()
    loss = loss_of(lecam_weight=0.1)

    found = loss.discriminator_terms(decoder(images), images)
    torch.stack(list(found.terms.values())).sum().backward()

    assert list(found.terms) == ["discriminator_loss", "lecam_loss"]
    assert decoder.weight.grad is None
    assert loss.discriminator is not None
    assert all(weight.grad is not None for weight in loss.discriminator.parameters())


def test_halves_of_a_batch_give_the_gradients_of_the_whole() -> None:
    decoder, images = example()
    loss = loss_of(lecam_weight=0.1)
    loss.update(torch.tensor([0.3, -0.3, 1.0]), torch.tensor(True))
    halves = (images[:2], images[2:])

    # The gradients of each half at the last layer, averaged as ranks do.
    sent: list[Tensor] = []
    for part in halves:
        loss.generator_terms(
            decoder(part),
            part,
            last_layer=decoder.weight,
            step=0,
            average=lambda tensor: (sent.append(tensor), tensor)[1],
        )
    mean = torch.stack(sent).mean(dim=0)
    gradients, statistics = [], []
    for parts in (halves, (images,)):
        decoder.zero_grad()
        assert loss.discriminator is not None
        loss.discriminator.zero_grad()
        sums = torch.zeros(3)
        for part in parts:
            reconstruction = decoder(part)
            terms, _ = loss.generator_terms(
                reconstruction,
                part,
                last_layer=decoder.weight,
                step=0,
                average=alone if len(parts) == 1 else lambda _: mean,
            )
            found = loss.discriminator_terms(reconstruction, part)
            total = torch.stack([*terms.values(), *found.terms.values()]).sum()
            (total / len(parts)).backward()
            sums += found.statistics
        weights = [*decoder.parameters(), *loss.discriminator.parameters()]
        gradients.append(
            torch.cat([torch.zeros(0) if w.grad is None else w.grad.flatten() for w in weights])
        )
        statistics.append(sums)

    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(statistics[0], statistics[1])


def test_settings_without_weight_build_no_discriminator() -> None:
    loss = loss_of(weight=0.0)

    assert loss.discriminator is None
    assert loss.logit_averages is None
    assert not loss.trains_discriminator(100)
