"""A code drawn by logits, with Gumbel noise in training, and the most likely one in use.

A 1x1 convolution turns encoder outputs into one logit per code. In training noise makes the largest
logit a random draw; a softmax whose temperature falls gives the gradient.

Source: Gumbel-softmax (Jang et al. 2016, arXiv:1611.01144) as in the dVAE of DALL-E (Ramesh et al.
2021, arXiv:2102.12092) and in the Gumbel variant of VQGAN.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ernie_vilg.config.codebook import CodebookConfig
from ernie_vilg.vqgan.quantizers.distances import flatten_grid, rows_per_table
from ernie_vilg.vqgan.quantizers.quantizer import Quantized, Quantizer


class GumbelQuantizer(Quantizer):
    """Projection to logits and codebook of vectors, float32 [codebook, embedding]."""

    codes_are_outputs = False

    def __init__(self, codebook_size: int, embedding_size: int, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Conv2d(embedding_size, codebook_size, kernel_size=1)
        self.codebook = nn.Parameter(torch.randn(codebook_size, embedding_size))

    def forward(
        self, vectors: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Quantized:
        """Draw a code for each vector.

        Args:
            vectors: encoder outputs, float [batch, embedding, grid, grid].
            progress: fraction of the run that is done, for the temperature.
            generator: source of the noise, on the vectors' device. Ranks and steps need different
                ones.
        """
        assert generator is not None, "a draw needs a generator; without noise call nearest()"
        with torch.autocast(vectors.device.type, enabled=False):
            batch, _, height, width = vectors.shape
            logits = self._logits(flatten_grid(vectors.float()))
            # The logarithm of an exponential variable is, negated, a Gumbel one.
            noise = -torch.empty_like(logits).exponential_(generator=generator).log()
            choices = ((logits + noise) / self.temperature(progress)).softmax(dim=1)
            codes = choices.argmax(dim=1)
            if self.config.gumbel_choice == "hard":
                hard = torch.zeros_like(choices).scatter_(1, codes[:, None], 1.0)
                choices = hard + (choices - choices.detach())
            logarithms = logits.log_softmax(dim=1)
            divergence = (logarithms.exp() * (logarithms + math.log(logits.shape[1]))).sum(dim=1)
            chosen = (choices @ self.codebook).view(batch, height, width, -1)
            return Quantized(
                vectors=chosen.permute(0, 3, 1, 2),
                codes=codes.view(batch, height, width),
                losses={"divergence_loss": self.config.gumbel_kl_weight * divergence.mean()},
                statistics=None,
            )

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the most likely codes of encoder outputs, int64 [batch, grid, grid].

        Args:
            vectors: encoder outputs, float [batch, embedding, grid, grid].
        """
        batch, _, height, width = vectors.shape
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            chunks = flatten_grid(vectors.float()).split(rows_per_table(len(self.codebook)))
            codes = torch.cat([self._logits(chunk).argmax(dim=1) for chunk in chunks])
        return codes.view(batch, height, width)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors [batch, embedding, grid, grid] of codes int64 [batch, grid, grid]."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    def code_vectors(self) -> Tensor:
        """Return the vector of every code, float32 [codebook, embedding]."""
        return self.codebook

    def set_codes(self, indices: Tensor, rows: Tensor) -> None:
        """Refuse: logits choose a code, and its vector does not say which outputs choose it.

        Args:
            indices: codes, int64 [count].
            rows: encoder outputs, float32 [count, embedding].
        """
        raise NotImplementedError("codes of a Gumbel quantizer do not lie among encoder outputs")

    def temperature(self, progress: float) -> float:
        """Return the temperature of the soft choice.

        Args:
            progress: fraction of the run that is done, from 0 to 1.
        """
        config = self.config
        is_over = progress >= config.gumbel_fall
        done = 1.0 if is_over else progress / config.gumbel_fall
        span = config.gumbel_temperature - config.final_gumbel_temperature
        return config.final_gumbel_temperature + span * (1 + math.cos(math.pi * done)) / 2

    def _logits(self, rows: Tensor) -> Tensor:
        """Return logits [rows, codebook] of encoder outputs [rows, embedding]."""
        return F.linear(rows, self.projection.weight.flatten(1), self.projection.bias)
