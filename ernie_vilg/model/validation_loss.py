"""Sums of the losses of held-out pairs, which add up over micro-batches and ranks.

A training step takes means, because all of its micro-batches have one size. Held-out pairs do not
fill the last micro-batch, so some of its rows stand for no pair. Sums count each pair once under
any layout, and the means are taken at the very end.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.model.head import HeadOutput
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.vocabulary import PADDING_ID
from ernie_vilg.vqgan.losses.pixel import reconstruction_loss
from ernie_vilg.vqgan.pixels import from_bytes

ValidationTargets = tuple[Tensor, ...]
"""Text ids, int64 [batch, text_length]; image codes, int64 [batch, num_image_tokens]; number of
pairs, which fill the first rows, int64 [1]; for an end-to-end reconstructor also pixels, uint8
[batch, 3, height, width]."""


def num_sums(config: ModelConfig) -> int:
    """Return the number of sums for a model."""
    return 2 + config.image_grid_size + 2 * config.text_length


@dataclass(frozen=True, kw_only=True)
class ValidationLosses:
    """Mean losses of held-out pairs."""

    num_pairs: int
    """Number of pairs."""
    total: float
    """Weighted sum of the terms, without z-loss."""
    text_to_image: float
    """Loss of image codes given text, nats per code."""
    image_to_text: float
    """Loss of text pieces given image codes, nats per piece."""
    reconstruction: float
    """Loss of pixels in [-1, 1], mean over pairs; 0 without an end-to-end reconstructor."""
    by_image_row: tuple[float, ...]
    """Loss of image codes by row of the grid, nats per code."""
    by_text_position: tuple[float | None, ...]
    """Loss of the text piece at each slot, nats per piece; None where no pair has a piece."""


class ValidationObjective:
    """The sums of a micro-batch, from the head's output and the targets."""

    def __init__(self, config: ObjectiveConfig, layers: ParallelLayers) -> None:
        """Prepare the sums.

        Args:
            config: weights of the terms.
            layers: layers of the head, whose cross-entropy takes split logits.
        """
        self._config = config
        self._layers = layers

    def __call__(self, output: HeadOutput, targets: ValidationTargets) -> Tensor:
        """Return the sums over the pairs, float64 [num_sums]."""
        text, codes, num_pairs, *pixels = targets
        is_pair = torch.arange(len(text), device=text.device) < num_pairs
        is_target = (text != PADDING_ID) & is_pair[:, None]
        image_losses, _ = self._layers.cross_entropy(output.image_logits, codes)
        text_losses, _ = self._layers.cross_entropy(output.text_logits, text)
        columns = math.isqrt(image_losses.shape[1])
        by_image_row = (image_losses.double() * is_pair[:, None]).unflatten(1, (-1, columns))
        reconstruction = torch.zeros(1, dtype=torch.float64, device=text.device)
        if output.pixels is not None:
            count = int(num_pairs)
            if count:
                reconstruction += count * reconstruction_loss(
                    output.pixels[:count],
                    from_bytes(pixels[0][:count]),
                    absolute_weight=self._config.absolute_error_weight,
                    squared_weight=self._config.squared_error_weight,
                )
        return torch.cat(
            [
                num_pairs.double(),
                reconstruction,
                by_image_row.sum(dim=(0, 2)),
                torch.where(is_target, text_losses.double(), 0.0).sum(dim=0),
                is_target.sum(dim=0).double(),
            ]
        )


def mean_losses(sums: Tensor, config: ModelConfig, objective: ObjectiveConfig) -> ValidationLosses:
    """Return the means.

    Args:
        sums: sums over all pairs, float64 [num_sums] on the CPU; of at least one pair.
        config: the model.
        objective: weights of the terms.
    """
    pairs, reconstruction = sums[0], float(sums[1] / sums[0])
    by_row, by_position, counts = sums[2:].split(
        [config.image_grid_size, config.text_length, config.text_length]
    )
    text_to_image = float(by_row.sum() / (pairs * config.num_image_tokens))
    image_to_text = float(by_position.sum() / counts.sum())
    total = (
        objective.text_to_image_weight * text_to_image
        + objective.image_to_text_weight * image_to_text
    )
    if config.reconstructor.is_end_to_end:
        total += objective.reconstruction_weight * reconstruction
    return ValidationLosses(
        num_pairs=int(pairs),
        total=total,
        text_to_image=text_to_image,
        image_to_text=image_to_text,
        reconstruction=reconstruction,
        by_image_row=tuple((by_row / (pairs * config.image_grid_size)).tolist()),
        by_text_position=tuple(
            loss / count if count else None
            for loss, count in zip(by_position.tolist(), counts.tolist(), strict=True)
        ),
    )
