"""The two-way objective: L = L_txt2img + L_img2txt.

Each term is the mean negative log-likelihood over its target tokens in the whole global
batch. A micro-batch cannot know that count, so it comes with the batch: the loss does not
depend on how a step is cut into micro-batches and ranks.

Source: ERNIE-ViLG (arXiv:2112.15283, equations 3 to 5), which writes sums; means are ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_vilg.config.model import ObjectiveConfig
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.vocabulary import PADDING_ID


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What one micro-batch adds to the step's mean, float32 scalars in nats per token."""

    total: Tensor
    """Weighted sum of the two, the one to differentiate."""
    text_to_image: Tensor
    """Of image codes given text."""
    image_to_text: Tensor
    """Of text pieces given image codes."""

    def detached(self) -> Tensor:
        """Return (total, text_to_image, image_to_text), float32 [3], without a graph."""
        return torch.stack([self.total, self.text_to_image, self.image_to_text]).detach()


class Objective:
    """The loss of a micro-batch from its logits and targets."""

    def __init__(self, config: ObjectiveConfig, layers: ParallelLayers) -> None:
        """Prepare.

        Args:
            config: the weights of the directions.
            layers: whose cross-entropy fits the split of the logits.
        """
        self._config = config
        self._cross_entropy = layers.cross_entropy

    def __call__(
        self, logits: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor, Tensor]
    ) -> Losses:
        """Return the losses.

        Args:
            logits: of the head: image [batch, num_image_tokens, codebook / size] and text
                [batch, text_length, text vocab / size].
            targets: text ids, int64 [batch, text_length], padding where there is nothing to
                predict; image codes, int64 [batch, num_image_tokens]; and the mean number
                of text targets per micro-batch of this step, float32 [1].
        """
        image_logits, text_logits = logits
        text, codes, mean_text_targets = targets
        text_to_image = self._cross_entropy(image_logits, codes).mean()
        is_target = text != PADDING_ID
        text_losses = torch.where(is_target, self._cross_entropy(text_logits, text), 0.0)
        image_to_text = text_losses.sum() / mean_text_targets.squeeze()
        return Losses(
            total=self._config.text_to_image_weight * text_to_image
            + self._config.image_to_text_weight * image_to_text,
            text_to_image=text_to_image,
            image_to_text=image_to_text,
        )
