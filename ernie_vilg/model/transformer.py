"""The model as a list of layers: embedding, blocks, head.

One device runs the list as `nn.Sequential`; a pipeline runs a part of it on each stage. Layer `i`
of the list is called `i` in every parameter name, on any stage.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.block import Block
from ernie_vilg.model.embedding import Embedding
from ernie_vilg.model.head import Head
from ernie_vilg.model.initialization import TIED, Uninitialized
from ernie_vilg.model.layers import SINGLE_DEVICE, ParallelLayers

LayerArguments = tuple[type[nn.Module], tuple[Any, ...]]
"""A layer's class and its constructor's arguments."""


def layer_list(config: ModelConfig, layers: ParallelLayers) -> list[LayerArguments]:
    """Return the class and arguments of each layer in order."""
    return [
        (Embedding, (config, layers)),
        *((Block, (config, layers, index)) for index in range(1, config.num_layers + 1)),
        (Head, (config, layers)),
    ]


def build_transformer(config: ModelConfig, layers: ParallelLayers = SINGLE_DEVICE) -> nn.Sequential:
    """Return the whole model, from (text ids, image codes) to a `HeadOutput`.

    The weights have no values until `initialize` or `load_weights` fills them.
    """
    with Uninitialized():
        model = nn.Sequential(*[cls(*arguments) for cls, arguments in layer_list(config, layers)])
    if config.tied_embeddings:
        embedding, head = model[0], model[-1]
        for output, table in TIED.items():
            getattr(head, output).weight = getattr(embedding, table).weight
    return model


@lru_cache(maxsize=16)
def num_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of the whole model."""
    return sum(parameter_sizes(config).values())


@lru_cache(maxsize=16)
def parameter_sizes(config: ModelConfig) -> dict[str, int]:
    """Return the number of single weights of each whole parameter by name."""
    with torch.device("meta"):
        named = build_transformer(config).named_parameters()
    return {name: parameter.numel() for name, parameter in named}
