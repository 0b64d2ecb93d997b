"""The end-to-end reconstructor: from the last layer's hidden states to pixels.

The hidden states of the image slots go through two linear layers with a GELU between them and
replace the codebook's vectors at the input of the image tokenizer's decoder. No code is looked up
in between, so gradients of the pixels reach the transformer.

Source: ERNIE-ViLG (arXiv:2112.15283, section 3.1.3). The paper says "non-linear mapping"; two
layers, as wide as the transformer, are our choice.
"""

from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.errors import InputError
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.vqgan.autoencoder import Decoder


class Reconstructor(nn.Module):
    """Two linear layers and the image tokenizer's decoder."""

    def __init__(self, config: ModelConfig, layers: ParallelLayers) -> None:
        super().__init__()
        decoder = config.reconstructor.decoder
        if decoder is None:
            raise InputError(
                "model.reconstructor.decoder=null where a model is built: give the image "
                "tokenizer's settings"
            )
        if decoder.grid_size != config.image_grid_size:
            raise InputError(
                f"model.reconstructor.decoder has a grid of {decoder.grid_size} codes a side, "
                f"model.image_grid_size={config.image_grid_size}: they must be the same"
            )
        self.grid_size = config.image_grid_size
        # The slot that holds a code as its input follows the slot that predicts it.
        self.first_slot = int(config.reconstructor.hidden_position == "input")
        self.up = layers.output_linear(config.hidden_size, config.hidden_size)
        self.down = layers.join_linear(config.hidden_size, decoder.embedding_size)
        self.activation = nn.GELU()
        self.decoder = Decoder(decoder)

    def forward(self, image: Tensor) -> Tensor:
        """Draw pictures.

        Args:
            image: normed hidden states of the image slots of text-to-image, float [batch,
                num_image_slots, hidden].

        Returns:
            pictures, float [batch, 3, height, width], not clamped.
        """
        slots = image[:, self.first_slot : self.first_slot + self.grid_size**2]
        vectors = self.down(self.activation(self.up(slots)))
        grid = vectors.unflatten(1, (self.grid_size, self.grid_size)).permute(0, 3, 1, 2)
        return self.decoder(grid)
