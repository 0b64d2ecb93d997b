"""What every rank of a layout holds, without processes or memory.

Tensor parallelism cuts each layer into plain torch layers of `1 / size`; built on the meta device
they have the shapes of megatron-core's and cost nothing. Stages are cut as the engine cuts them.

Source: ours.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.model.flops import layer_flops
from ernie_vilg.model.initialization import Uninitialized, original_name
from ernie_vilg.model.layers import SINGLE_DEVICE, ParallelLayers
from ernie_vilg.model.partition import stage_bounds
from ernie_vilg.model.transformer import layer_list


@dataclass(frozen=True, kw_only=True)
class StageShard:
    """What each rank of a pipeline stage holds."""

    layers: range
    """Which of the list of layers the stage runs."""
    shapes: Mapping[str, torch.Size]
    """Of one tensor rank's parameters by name, layer index first; alike on all tensor ranks."""
    flops: int
    """Operations of the whole stage, all its tensor ranks together, forward, per pair."""

    @property
    def num_parameters(self) -> int:
        """Parameters of one rank, not yet divided by ZeRO."""
        return sum(shape.numel() for shape in self.shapes.values())


def shard_layers(tensor_size: int) -> ParallelLayers:
    """Return constructors of one tensor rank's share, for its shapes alone.

    The layers do not talk to each other, so what they compute means nothing where
    `tensor_size` is above 1.

    Args:
        tensor_size: ranks that share each layer; must divide heads and both vocabularies.
    """
    column = partial(_column_linear, tensor_size)
    row = partial(_row_linear, tensor_size)
    return replace(
        SINGLE_DEVICE,
        column_linear=column,
        row_linear=row,
        output_linear=column,
        join_linear=row,
        vocab_embedding=partial(_vocab_embedding, tensor_size),
        size=tensor_size,
    )


def stage_shards(config: ModelConfig, layout: ParallelismConfig) -> list[StageShard]:
    """Return what the ranks of each stage hold, first stage first; one without a pipeline.

    Args:
        config: the model's shape.
        layout: which must be legal for it.
    """
    costs = layer_flops(config)
    bounds = stage_bounds(costs, layout.pipeline_parallel_size)
    return [
        StageShard(
            layers=range(first, end),
            shapes=_shapes(config, layout.tensor_parallel_size, range(first, end)),
            flops=sum(costs[first:end]),
        )
        for first, end in itertools.pairwise(bounds)
    ]


def _shapes(config: ModelConfig, tensor_size: int, stage: range) -> Mapping[str, torch.Size]:
    last = config.num_layers + 1
    shapes = {
        f"{index}.{name}": shape
        for index in stage
        # All blocks have the shapes of the first.
        for name, shape in _layer_shapes(config, tensor_size, index if index in (0, last) else 1)
    }
    if len(stage) <= last:  # first and last stage have a copy each of what is tied
        return shapes
    return {name: shape for name, shape in shapes.items() if original_name(name, config) == name}


@lru_cache(maxsize=256)
def _layer_shapes(
    config: ModelConfig, tensor_size: int, index: int
) -> tuple[tuple[str, torch.Size], ...]:
    kind, arguments = layer_list(config, shard_layers(tensor_size))[index]
    with torch.device("meta"), Uninitialized():
        layer = kind(*arguments)
    return tuple((name, parameter.shape) for name, parameter in layer.named_parameters())


def _column_linear(size: int, inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs // size)


def _row_linear(size: int, inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs // size, outputs)


def _vocab_embedding(size: int, vocab: int, hidden: int) -> nn.Module:
    return nn.Embedding(vocab // size, hidden)
