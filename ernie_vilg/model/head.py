"""From hidden states to logits, for the target slots only.

Text-to-image predicts image codes at the image slots, image-to-text predicts text pieces at
the text slots; no other slot and no other half of the vocabulary is computed.

Source: ours; separate halves follow from the losses of ERNIE-ViLG (arXiv:2112.15283,
equations 3 and 4).
"""

from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.layers import ParallelLayers


class Head(nn.Module):
    """The last layer: a layer norm and one output projection per modality."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers) -> None:
        super().__init__()
        self.text_length = config.text_length
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.image_logits = layers.column_linear(config.hidden_size, config.codebook_size)
        self.text_logits = layers.column_linear(config.hidden_size, config.text_vocab_size)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of every target.

        Args:
            hidden: float [direction, batch, seq, hidden].

        Returns:
            image logits, float [batch, num_image_tokens, codebook / size], and text logits,
            float [batch, text_length, text vocab / size], of the token each slot predicts.
        """
        image = hidden[Direction.TEXT_TO_IMAGE, :, self.text_length :]
        text = hidden[Direction.IMAGE_TO_TEXT, :, : self.text_length]
        return self.image_logits(self.norm(image)), self.text_logits(self.norm(text))
