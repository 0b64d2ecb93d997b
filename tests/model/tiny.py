"""A model small enough to check slot by slot."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.vocabulary import text_slots

CONFIG = ModelConfig(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    text_vocab_size=24,
    text_length=5,
    codebook_size=20,
    image_grid_size=2,
    initializer_std=0.3,  # large, so that every input matters to every output
)

DECODER = ImageTokenizerConfig(
    image_size=8,
    codebook_size=CONFIG.codebook_size,
    embedding_size=4,
    base_channels=8,
    channel_multipliers=(1,),
    num_residual_blocks=0,
    patch_size=4,
    normalization="channel",
)
"""Decoder of a reconstructor for a grid of 2 x 2 codes."""


def tiny_config(**changes: Any) -> ModelConfig:
    """Return the tiny model's shape with some settings changed."""
    return replace(CONFIG, **changes)


def tiny_model(config: ModelConfig = CONFIG) -> nn.Sequential:
    """Return a model in which all weights, biases and norms affect the output."""
    model = build_transformer(config)
    initialize(model.named_parameters(), config, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tiny_pairs(config: ModelConfig = CONFIG) -> tuple[Tensor, Tensor]:
    """Return three pairs: captions of 1, 2 and 5 pieces, truncated to the slots."""
    text = [text_slots(ids, config.text_length) for ids in ([7], [9, 8], [5, 6, 10, 11, 12])]
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(config.codebook_size, (3, config.num_image_tokens), generator=generator)
    codes[1] = 4  # a picture of one code
    return torch.tensor(text), codes
