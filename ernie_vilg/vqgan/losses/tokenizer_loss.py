"""The loss of the image tokenizer but for the quantizer's terms, and of its discriminator.

`TokenizerLoss` holds the networks that the terms need. In each micro-batch the caller adds up
`generator_terms` and the quantizer's losses and goes backward, then does the same with
`discriminator_terms`. At the end of the step it hands the summed statistics to `update`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ernie_vilg.config.tokenizer_objective import TokenizerObjectiveConfig
from ernie_vilg.vqgan.discriminator import PatchDiscriminator, logits_of
from ernie_vilg.vqgan.losses.adversarial import (
    Average,
    LogitAverages,
    adaptive_factor,
    adversarial_weight,
    discriminator_loss,
    generator_loss,
    trains_discriminator,
)
from ernie_vilg.vqgan.losses.perceptual import PerceptualDistance, build_perceptual_distance
from ernie_vilg.vqgan.losses.pixel import reconstruction_loss


class GeneratorTerms(NamedTuple):
    """Terms of the tokenizer's loss for some pictures."""

    terms: dict[str, Tensor]
    """Weighted terms by name, float32 [] each, with a graph; their sum is the loss."""
    figures: dict[str, Tensor]
    """Further figures for the log by name, float32 [] each, without gradient."""


class DiscriminatorTerms(NamedTuple):
    """Terms of the discriminator's loss for some pictures."""

    terms: dict[str, Tensor]
    """Weighted terms by name, float32 [] each, with a graph; their sum is the loss."""
    figures: dict[str, Tensor]
    """Further figures for the log by name, float32 [] each, without gradient."""
    statistics: Tensor
    """Sums that `TokenizerLoss.update` takes, float32 [3]. Sums of two halves of a batch add up to
    those of the whole."""


class TokenizerLoss:
    """Terms of pixels, perception and the discriminator, by the settings of a run.

    Every term is a mean over this rank's pictures: mean gradients over ranks and micro-batches are
    those of the whole batch. The adaptive factor is that of one micro-batch on all ranks, so a
    change of the micro-batch changes it slightly.
    """

    def __init__(self, config: TokenizerObjectiveConfig, device: torch.device) -> None:
        """Build the networks; the discriminator's weights come from torch's global generator.

        Args:
            config: weights, networks and schedule.
            device: device of all networks.

        Raises:
            InputError: weights of the perceptual distance are missing, altered or of another
                network.
        """
        self.config = config
        self.perceptual: PerceptualDistance | None = build_perceptual_distance(
            config.perceptual, device
        )
        """Distance of features; frozen, and no part of a checkpoint."""
        self.discriminator: PatchDiscriminator | None = None
        """Network to train beside the tokenizer and to save; None where its weight is 0."""
        self.logit_averages: LogitAverages | None = None
        """Buffers to save; None without LeCAM."""
        adversarial = config.adversarial
        if adversarial.weight:
            self.discriminator = PatchDiscriminator(
                adversarial.base_channels, adversarial.num_layers
            ).to(device)
            if adversarial.lecam_weight:
                self.logit_averages = LogitAverages(adversarial.lecam_decay).to(device)

    def trains_discriminator(self, step: int) -> bool:
        """Return whether the discriminator takes this step, after `step` steps."""
        return trains_discriminator(step, self.config.adversarial)

    def generator_terms(
        self,
        reconstruction: Tensor,
        images: Tensor,
        *,
        last_layer: Tensor,
        step: int,
        average: Average,
    ) -> GeneratorTerms:
        """Return the terms of the tokenizer's loss but for the quantizer's.

        All ranks must call with the same step, because `average` is called in some steps only.

        Args:
            reconstruction: output of the decoder, float [batch, 3, height, width], with a graph.
            images: originals, float32 [batch, 3, height, width] in [-1, 1].
            last_layer: weight of the decoder's last convolution.
            step: number of steps made before.
            average: mean of a tensor over all ranks.

        Returns:
            "reconstruction_loss"; "perceptual_loss" where its weight is above 0;
            "adversarial_loss" once its term counts. Figure: "adaptive_factor", with the latter.
        """
        config = self.config
        reconstruction = reconstruction.float()
        terms = {
            "reconstruction_loss": reconstruction_loss(
                reconstruction,
                images,
                absolute_weight=config.absolute_error_weight,
                squared_weight=config.squared_error_weight,
            )
        }
        if self.perceptual is not None:
            distance = self.perceptual(reconstruction, images).mean()
            terms["perceptual_loss"] = config.perceptual.weight * distance
        weight = adversarial_weight(step, config.adversarial)
        if self.discriminator is None or not weight:
            return GeneratorTerms(terms, {})
        with self.discriminator.frozen():
            term = generator_loss(self.discriminator(reconstruction), config.adversarial.loss)
        figures = {}
        if config.adversarial.adaptive:
            factor = adaptive_factor(
                torch.stack(list(terms.values())).sum(),
                term,
                last_layer,
                largest=config.adversarial.max_adaptive_factor,
                average=average,
            )
            figures["adaptive_factor"] = factor
            term = factor * term
        terms["adversarial_loss"] = weight * term
        return GeneratorTerms(terms, figures)

    def discriminator_terms(self, reconstruction: Tensor, images: Tensor) -> DiscriminatorTerms:
        """Return the terms of the discriminator's loss; `trains_discriminator` must hold.

        Args:
            reconstruction: output of the decoder, float [batch, 3, height, width].
            images: originals, float32 [batch, 3, height, width] in [-1, 1].

        Returns:
            "discriminator_loss", and "lecam_loss" with LeCAM. Figures: "real_logit", "fake_logit".
        """
        config = self.config.adversarial
        assert self.discriminator is not None, "settings without discriminator"
        real, fake = logits_of(self.discriminator, images, reconstruction.detach().float())
        terms = {"discriminator_loss": discriminator_loss(real, fake, config.loss)}
        if self.logit_averages is not None:
            terms["lecam_loss"] = config.lecam_weight * self.logit_averages.penalty(real, fake)
        figures = {
            "real_logit": real.detach().float().mean(),
            "fake_logit": fake.detach().float().mean(),
        }
        return DiscriminatorTerms(terms, figures, LogitAverages.statistics(real, fake))

    def update(self, statistics: Tensor, is_made: Tensor) -> None:
        """Move the averages of the logits, where the settings have LeCAM.

        Args:
            statistics: sum of `DiscriminatorTerms.statistics` over micro-batches and ranks.
            is_made: whether the step is made, bool []; without it nothing changes.
        """
        if self.logit_averages is not None:
            self.logit_averages.update(statistics, is_made)
