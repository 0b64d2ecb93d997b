"""The model as a list of layers: embedding, blocks, head.

One device runs the list as `nn.Sequential`; a pipeline gives each stage some of it. Layer
`i` of the list is called `i` in every parameter name, wherever it runs.

Source: ours.
"""

from dataclasses import dataclass

from torch import nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.block import Block
from ernie_vilg.model.embedding import Embedding
from ernie_vilg.model.head import Head
from ernie_vilg.model.layers import SINGLE_DEVICE, ParallelLayers


def layer_classes(config: ModelConfig) -> list[type[Embedding] | type[Block] | type[Head]]:
    """Return the class of each layer in order; each is built as `cls(config, layers)`."""
    return [Embedding, *[Block] * config.num_layers, Head]


def build_transformer(config: ModelConfig, layers: ParallelLayers = SINGLE_DEVICE) -> nn.Sequential:
    """Return the whole model: (text ids, image codes) to (image logits, text logits).

    Weights are not meaningful until `initialize` or `load_weights` fills them.
    """
    return nn.Sequential(*[cls(config, layers) for cls in layer_classes(config)])


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes that follow from a `ModelConfig`."""

    num_parameters: int
    """Of the whole model."""
    training_flops_per_pair: int
    """Forward and backward of both directions, multiplications and additions counted apart,
    recomputation not counted. The denominator of MFU."""


def shapes(config: ModelConfig) -> Shapes:
    """Count parameters and floating-point operations.

    A matrix product with `p` weights costs `2 p` operations per token forward and `4 p`
    backward; attention costs `4 seq^2 hidden` per layer and sequence forward, as if dense.

    Source: Narayanan et al. 2021 (arXiv:2104.04473, appendix), for both directions.
    """
    hidden, layers = config.hidden_size, config.num_layers
    matrices = (4 + 2 * config.ffn_multiplier) * hidden**2
    vectors = (4 + 1 + config.ffn_multiplier + 4) * hidden  # biases of 4 linears, 2 norms
    heads = (hidden + 1) * (config.codebook_size + config.text_vocab_size)
    tokens = (config.codebook_size + config.text_vocab_size) * hidden
    positions = (1 + 2 * config.text_length + 2 * config.image_grid_size + 4) * hidden
    seq = config.seq_length
    forward = 2 * layers * (2 * matrices * seq + 4 * seq**2 * hidden)
    forward += 2 * hidden * config.codebook_size * config.num_image_tokens
    forward += 2 * hidden * config.text_vocab_size * config.text_length
    return Shapes(
        num_parameters=layers * (matrices + vectors) + heads + tokens + positions + 2 * hidden,
        training_flops_per_pair=3 * forward,
    )
