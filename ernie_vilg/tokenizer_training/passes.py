"""The forward passes of one micro-batch, through the tokenizer and through the discriminator.

The networks compute in the run's precision, the quantizer and every loss in float32.

Source: VQGAN (Esser et al. 2021, arXiv:2012.09841).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ernie_vilg.tokenizer_training.input_noise import with_noise
from ernie_vilg.tokenizer_training.results import StepSums
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.losses.adversarial import Average
from ernie_vilg.vqgan.losses.tokenizer_loss import TokenizerLoss


class TokenizerPass(NamedTuple):
    """Result of a forward pass through the tokenizer."""

    loss: Tensor
    """Loss of the tokenizer, mean over the micro-batch, float32 [], with a graph."""
    reconstruction: Tensor
    """Reconstructions, float32 [batch, 3, height, width], without gradient."""
    vectors: Tensor
    """Encoder outputs, float32 [batch, embedding, grid, grid], without gradient."""


class Passes:
    """The networks and losses of a run, and the passes through them; all ranks must call."""

    def __init__(
        self,
        model: VQGAN,
        loss: TokenizerLoss,
        precision: torch.dtype,
        average: Average,
        *,
        input_noise: float,
    ) -> None:
        """Keep the networks.

        Args:
            model: the tokenizer.
            loss: its loss, with the discriminator.
            precision: data type in which the networks compute.
            average: mean over ranks.
            input_noise: standard deviation of the noise of the encoder's pictures.
        """
        self._model, self._loss = model, loss
        self._input_noise = input_noise
        self._precision, self._average = precision, average

    def tokenizer(
        self,
        images: Tensor,
        sums: StepSums,
        *,
        step: int,
        progress: float,
        generator: torch.Generator,
    ) -> TokenizerPass:
        """Reconstruct pictures, and judge the result.

        Args:
            images: float32 [batch, 3, height, width] in [-1, 1], channels last.
            sums: takes losses, counts of codes and the quantizer's statistics.
            step: number of steps made before.
            progress: fraction of the run that is done.
            generator: source of the pictures' and the quantizer's noise.
        """
        model = self._model
        noisy = with_noise(images, self._input_noise, generator)
        with self._autocast(images.device):
            vectors = model.encoder(noisy)
            quantized = model.quantizer(vectors, progress=progress, generator=generator)
            reconstruction = model.decoder(quantized.vectors)
            of_pictures = self._loss.generator_terms(
                reconstruction,
                images,
                last_layer=model.last_layer,
                step=step,
                average=self._average,
            )
        terms = {**of_pictures.terms, **quantized.losses}
        loss = _sum_of(terms)
        reconstruction = reconstruction.detach().float()
        error = F.mse_loss(reconstruction.clamp(-1, 1), images)
        sums.add({"loss": loss, **terms, **of_pictures.figures, "squared_error": error})
        sums.add_codes(quantized.codes)
        if quantized.statistics is not None:
            sums.add_statistics("codes", quantized.statistics)
        return TokenizerPass(loss, reconstruction, vectors.detach().float())

    def discriminator(self, images: Tensor, reconstruction: Tensor, sums: StepSums) -> Tensor:
        """Return the discriminator's loss, mean over the micro-batch, float32 [], with a graph.

        Args:
            images: float32 [batch, 3, height, width] in [-1, 1].
            reconstruction: the tokenizer's reconstructions of them in the same step.
            sums: takes losses and statistics of the logits.
        """
        with self._autocast(images.device):
            found = self._loss.discriminator_terms(reconstruction, images)
        sums.add({**found.terms, **found.figures})
        sums.add_statistics("logits", found.statistics)
        return _sum_of(found.terms)

    def encode(self, images: Tensor) -> Tensor:
        """Return encoder outputs without gradient, float32 [batch, embedding, grid, grid]."""
        with torch.no_grad(), self._autocast(images.device):
            vectors: Tensor = self._model.encoder(images)
        return vectors.float()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self._precision == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=self._precision)


def _sum_of(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([term.float() for term in terms.values()]).sum()
