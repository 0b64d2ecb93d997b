"""What every rank of a layout holds, without processes or memory.

Tensor parallelism cuts each layer into plain torch layers of `1 / size`; built on the meta device
they have the shapes of megatron-core's and cost nothing. Stages are cut as the engine cuts them.

Source: ours.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.model.flops import layer_flops
from ernie_vilg.model.layers import SINGLE_DEVICE, ParallelLayers
from ernie_vilg.model.partition import stage_bounds
from ernie_vilg.model.transformer import build_transformer, layer_list


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
    layers = shard_layers(layout.tensor_parallel_size)
    return [
        StageShard(
            layers=range(first, end),
            shapes=_shapes(config, layers, range(first, end)),
            flops=sum(costs[first:end]),
        )
        for first, end in itertools.pairwise(bounds)
    ]


def _shapes(config: ModelConfig, layers: ParallelLayers, stage: range) -> Mapping[str, torch.Size]:
    with torch.device("meta"):
        module: nn.Module
        if len(stage) == config.num_layers + 2:
            module = build_transformer(config, layers)  # which ties what is tied
        else:
            classes = layer_list(config, layers)
            module = nn.ModuleDict(
                {str(index): classes[index][0](*classes[index][1]) for index in stage}
            )
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def _column_linear(size: int, inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs // size)


def _row_linear(size: int, inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs // size, outputs)


def _vocab_embedding(size: int, vocab: int, hidden: int) -> nn.Module:
    return nn.Embedding(vocab // size, hidden)
