"""The head: from hidden states to logits of the target slots, and to pictures.

Text-to-image predicts image codes at the image slots, image-to-text predicts text pieces at the
text slots. No other slot, and no logit of the other modality, is computed. An end-to-end
reconstructor also turns the hidden states of the image slots into pixels.

Source: separate logits follow from the losses of ERNIE-ViLG (arXiv:2112.15283,
equations 3 and 4).
"""

from typing import NamedTuple

from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.model.reconstructor import Reconstructor


class HeadOutput(NamedTuple):
    """The model's output for a batch of pairs."""

    image_logits: Tensor
    """Logits of the image codes, float [batch, num_image_tokens, codebook / size]."""
    text_logits: Tensor
    """Logits of the text pieces, float [batch, text_length, text vocab / size]."""
    pixels: Tensor | None = None
    """Pictures of an end-to-end reconstructor, float [batch, 3, height, width], not clamped."""


class Head(nn.Module):
    """The last layer: a layer norm and one output projection per modality."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers) -> None:
        super().__init__()
        self.config = config
        self.join_tokens = layers.join_tokens
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.image_logits = layers.output_linear(config.hidden_size, config.codebook_size)
        self.text_logits = layers.output_linear(config.hidden_size, config.text_vocab_size)
        self.reconstructor = (
            Reconstructor(config, layers) if config.reconstructor.is_end_to_end else None
        )

    def forward(self, hidden: Tensor) -> HeadOutput:
        """Return the logits of all targets, and pictures if there is a reconstructor.

        Args:
            hidden: float [direction, batch, seq, hidden]; with sequence parallelism this rank's
                part of the tokens, [tokens / size, hidden].
        """
        config = self.config
        hidden = self.join_tokens(hidden)
        hidden = hidden.view(len(Direction), -1, config.seq_length, config.hidden_size)
        image = self.norm(hidden[Direction.TEXT_TO_IMAGE, :, config.text_length :])
        text = self.norm(hidden[Direction.IMAGE_TO_TEXT, :, : config.text_length])
        return HeadOutput(
            image_logits=self.image_logits(image[:, : config.num_image_tokens]),
            text_logits=self.text_logits(text),
            pixels=None if self.reconstructor is None else self.reconstructor(image),
        )
