"""The bidirectional loss: L = L_txt2img + L_img2txt, plus the reconstruction of pixels.

Each term is the mean negative log-likelihood over its target tokens in the whole global batch. A
micro-batch cannot know their number, so the batch brings it along. The loss therefore does not
depend on the division of a step into micro-batches and ranks. Text targets are those of
`text_targets`: a caption, or the answer to a question, never the question.

Held-out pairs do not fill their last micro-batch, so some of its rows stand for no pair. Their
losses are summed in float64, each pair once under any layout; means are taken at the very end.

Source: ERNIE-ViLG (arXiv:2112.15283, equations 3 to 5), which writes sums; means are ours. The
z-loss is PaLM's (arXiv:2204.02311, section 5).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_vilg.config.model import ModelConfig, ObjectiveConfig
from ernie_vilg.model.cross_entropy import vocab_cross_entropy
from ernie_vilg.model.head import HeadOutput
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID, PADDING_ID
from ernie_vilg.vqgan.losses.pixel import reconstruction_loss
from ernie_vilg.vqgan.pixels import from_bytes

NUM_TERMS = 4
"""Number of first values of `Losses.detached`: the total and its three terms."""


def num_losses(config: ModelConfig) -> int:
    """Return the length of `Losses.detached` for a model."""
    return NUM_TERMS + config.image_grid_size + 2 * config.text_length


Targets = tuple[Tensor, ...]
"""Text ids, int64 [batch, text_length], padded after the last target; image codes, int64 [batch,
num_image_tokens]; the mean number of text targets per micro-batch of this step, float32 [1]; for an
end-to-end reconstructor also pixels, uint8 [batch, 3, height, width]."""

ValidationTargets = tuple[Tensor, ...]
"""Text ids, int64 [batch, text_length]; image codes, int64 [batch, num_image_tokens]; number of
pairs, which fill the first rows, int64 [1]; for an end-to-end reconstructor also pixels, uint8
[batch, 3, height, width]."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Contributions of one micro-batch to the step's mean losses, float32 scalars."""

    total: Tensor
    """Weighted sum of the terms, which is differentiated."""
    text_to_image: Tensor
    """Loss of image codes given text, nats per code."""
    image_to_text: Tensor
    """Loss of text pieces given image codes, nats per piece."""
    reconstruction: Tensor
    """Loss of pixels in [-1, 1]; 0 without an end-to-end reconstructor."""
    by_image_row: Tensor
    """Loss of image codes given text, mean over each row of the grid, nats per code, float32
    [image_grid_size]."""
    by_text_position: Tensor
    """Loss of the text piece at each slot given image codes, mean over all pairs, 0 for a pair
    without a piece there, nats per pair, float32 [text_length]."""
    text_position_share: Tensor
    """Fraction of pairs with a text target at each slot, float32 [text_length]."""

    def detached(self) -> Tensor:
        """Return all values in order, float32 [num_losses], without a graph.

        Each is a mean over pairs, so the mean over micro-batches and replicas of equal size is the
        step's value. The loss per piece at a text slot is `by_text_position` divided by
        `text_position_share`, both summed over steps.
        """
        terms = [self.total, self.text_to_image, self.image_to_text, self.reconstruction]
        profiles = [self.by_image_row, self.by_text_position, self.text_position_share]
        return torch.cat([torch.stack(terms), *profiles]).detach()


def text_targets(text: Tensor) -> Tensor:
    """Return which slots are predicted: those of a caption, or those of the answer to a question.

    An end of text is predicted, padding is not, and neither is a question with the begin of text
    after it.

    Args:
        text: padded ids, int64 [..., text_length].

    Returns:
        bool [..., text_length].
    """
    places = torch.arange(1, text.shape[-1] + 1, device=text.device)
    begin = torch.where(text == BEGIN_OF_TEXT_ID, places, 0).amax(-1, keepdim=True)
    return (places > begin) & (text != PADDING_ID)


def target_losses(output: HeadOutput, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of every target given the other half of its pair.

    Args:
        output: logits of both halves, not split.
        text: padded text ids, int64 [batch, text_length].
        codes: image codes, int64 [batch, num_image_tokens].

    Returns:
        nats of each code, float32 [batch, num_image_tokens], and nats of each text piece, 0 where
        none is predicted, float32 [batch, text_length].
    """
    image_losses, _ = vocab_cross_entropy(output.image_logits, codes)
    text_losses, _ = vocab_cross_entropy(output.text_logits, text)
    return image_losses, torch.where(text_targets(text), text_losses, 0.0)


def sample_losses(
    output: HeadOutput, text: Tensor, codes: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of each sample in both directions.

    Args:
        output: logits of both halves.
        text: padded text ids, int64 [batch, text_length].
        codes: image codes, int64 [batch, num_image_tokens].
        dtype: precision of the means.

    Returns:
        nats per code given the text, and nats per text piece given the codes, [batch] each.
    """
    image_losses, text_losses = target_losses(output, text, codes)
    num_pieces = text_targets(text).sum(dim=1)
    return image_losses.to(dtype).mean(dim=1), text_losses.to(dtype).sum(dim=1) / num_pieces


class Objective:
    """The loss of a micro-batch, from the head's output and the targets."""

    def __init__(self, config: ObjectiveConfig, layers: ParallelLayers) -> None:
        """Prepare the loss.

        Args:
            config: weights of the terms.
            layers: layers of the head, whose cross-entropy takes split logits.
        """
        self._config = config
        self._layers = layers

    def __call__(self, output: HeadOutput, targets: Targets) -> Losses:
        """Return the losses."""
        config = self._config
        text, codes, mean_text_targets, *pixels = targets
        is_target = text_targets(text)
        image_losses, image_partitions = self._layers.cross_entropy(output.image_logits, codes)
        text_losses, text_partitions = self._layers.cross_entropy(output.text_logits, text)
        text_losses = torch.where(is_target, text_losses, 0.0)
        text_to_image = image_losses.mean()
        image_to_text = text_losses.sum() / mean_text_targets.squeeze()
        total = (
            config.text_to_image_weight * text_to_image
            + config.image_to_text_weight * image_to_text
        )
        if config.z_loss_weight:
            of_image = image_partitions.square().mean()
            of_text = torch.where(is_target, text_partitions.square(), 0.0).sum()
            z_loss = of_image + of_text / mean_text_targets.squeeze()
            total = total + config.z_loss_weight * z_loss
        reconstruction = torch.zeros_like(text_to_image)
        if output.pixels is not None:
            reconstruction = self._reconstruction(output.pixels, pixels[0])
            total = total + config.reconstruction_weight * reconstruction
        return Losses(
            total=total,
            text_to_image=text_to_image,
            image_to_text=image_to_text,
            reconstruction=reconstruction,
            by_image_row=_row_means(image_losses.detach()),
            by_text_position=text_losses.detach().mean(dim=0),
            text_position_share=is_target.float().mean(dim=0),
        )

    def sums(self, output: HeadOutput, targets: ValidationTargets) -> Tensor:
        """Return the sums of the losses over held-out pairs, float64 [num_sums]."""
        text, codes, num_pairs, *pixels = targets
        is_pair = torch.arange(len(text), device=text.device) < num_pairs
        is_target = text_targets(text) & is_pair[:, None]
        image_losses, _ = self._layers.cross_entropy(output.image_logits, codes)
        text_losses, _ = self._layers.cross_entropy(output.text_logits, text)
        by_image_row = _rows(image_losses.double() * is_pair[:, None])
        reconstruction = torch.zeros(1, dtype=torch.float64, device=text.device)
        if output.pixels is not None and (count := int(num_pairs)):
            reconstruction += count * self._reconstruction(output.pixels[:count], pixels[0][:count])
        return torch.cat(
            [
                num_pairs.double(),
                reconstruction,
                by_image_row.sum(dim=(0, 2)),
                torch.where(is_target, text_losses.double(), 0.0).sum(dim=0),
                is_target.sum(dim=0).double(),
            ]
        )

    def _reconstruction(self, drawn: Tensor, pixels: Tensor) -> Tensor:
        """Return the loss of drawn pictures, float32 []."""
        return reconstruction_loss(
            drawn,
            from_bytes(pixels),
            absolute_weight=self._config.absolute_error_weight,
            squared_weight=self._config.squared_error_weight,
        )


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


def _row_means(values: Tensor) -> Tensor:
    """Return the mean of each row of the grid, [rows], of [batch, rows * columns]."""
    return _rows(values).mean(dim=(0, 2))


def _rows(values: Tensor) -> Tensor:
    """Return [batch, rows, columns] of [batch, rows * columns]."""
    return values.unflatten(1, (math.isqrt(values.shape[1]), -1))
