"""Floating-point operations per pair, layer by layer.

An addition and a multiplication are two operations. A matrix product with `p` weights costs `2 p`
per token forward and `4 p` backward; attention costs `4 hidden` per visible pair of slots forward.
Recomputed operations count once.

Source: Narayanan et al. 2021 (arXiv:2104.04473, appendix), for both directions.
"""

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.lora import LINEAR_LAYERS
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.attention import num_visible_pairs
from ernie_vilg.model.attention_mask import Direction, pattern_of_block
from ernie_vilg.vqgan.autoencoder import Decoder


@lru_cache(maxsize=16)
def layer_flops(config: ModelConfig) -> tuple[int, ...]:
    """Return the operations of each layer of the list, forward, per pair in both directions."""
    blocks = [_block_flops(config, index) for index in range(1, config.num_layers + 1)]
    return (0, *blocks, _head_flops(config))  # embedding lookups cost none


def training_flops_per_pair(config: ModelConfig) -> int:
    """Return the operations of forward and backward pass per pair, the numerator of MFU.

    With adapters, the weights that keep their values have no product for their gradient.
    """
    forward = sum(layer_flops(config))
    if not config.lora.rank:
        return 3 * forward
    frozen = config.num_layers * product_flops(config) + _head_flops(config)
    return 3 * (forward + _adapter_flops(config)) - frozen


def training_flops_per_token(config: ModelConfig) -> int:
    """Return the operations of forward and backward pass per slot; a pair has two sequences."""
    return training_flops_per_pair(config) // (len(Direction) * config.seq_length)


def product_flops(config: ModelConfig) -> int:
    """Return the operations of one block's products with weights, forward, per pair."""
    weights = (4 + 2 * config.ffn_multiplier) * config.hidden_size**2
    return len(Direction) * 2 * weights * config.seq_length


def attention_flops(config: ModelConfig, block_index: int) -> int:
    """Return the operations of one block's scores and sums, forward, per pair; index from 1."""
    pairs = num_visible_pairs(config, pattern_of_block(config, block_index))
    return 4 * config.hidden_size * pairs


def _block_flops(config: ModelConfig, block_index: int) -> int:
    return product_flops(config) + attention_flops(config, block_index)


def _adapter_flops(config: ModelConfig) -> int:
    """Return the operations of all adapters, forward, per pair."""
    hidden, inner = config.hidden_size, config.ffn_multiplier * config.hidden_size
    sizes = dict(zip(LINEAR_LAYERS, (4 * hidden, 2 * hidden, *2 * [hidden + inner]), strict=True))
    layers = config.lora.layers(config.num_layers)
    widths = sum(sizes[name.partition(".")[2]] for name in layers)  # in + out
    return len(Direction) * 2 * config.lora.rank * widths * config.seq_length


def _head_flops(config: ModelConfig) -> int:
    image = config.codebook_size * config.num_image_tokens
    text = config.text_vocab_size * config.text_length
    flops = 2 * config.hidden_size * (image + text)
    decoder = config.reconstructor.decoder
    if config.reconstructor.is_end_to_end and decoder is not None:
        weights = config.hidden_size * (config.hidden_size + decoder.embedding_size)
        flops += 2 * weights * config.num_image_tokens + _decoder_flops(decoder)
    return flops


def _decoder_flops(config: ImageTokenizerConfig) -> int:
    """Count the convolutions and attentions of drawing one picture."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        grid = config.grid_size
        Decoder(config)(torch.empty(1, config.embedding_size, grid, grid))
    return counter.get_total_flops()
