"""A model small enough to check slot by slot."""

import torch
from torch import Tensor, nn

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


def tiny_model() -> nn.Sequential:
    """Return a model whose weights matter, biases and norms included."""
    model = build_transformer(CONFIG)
    initialize(model.named_parameters(), CONFIG, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tiny_pairs() -> tuple[Tensor, Tensor]:
    """Return three pairs: captions of 1, 2 and 5 (cut to the slots) pieces."""
    text = [text_slots(ids, CONFIG.text_length) for ids in ([7], [9, 8], [5, 6, 10, 11, 12])]
    codes = [[0, 5, 19, 3], [4, 4, 4, 4], [17, 2, 9, 1]]
    return torch.tensor(text), torch.tensor(codes)
