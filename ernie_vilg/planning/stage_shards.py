"""The parameters of every rank of a layout, without processes or memory.

The layers of one tensor rank (`rank_layers`) are built on the meta device, which costs nothing.
Stages are cut as the engine cuts them.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.model.flops import layer_flops
from ernie_vilg.model.initialization import Uninitialized, original_name
from ernie_vilg.model.lora.names import has_optimizer_state
from ernie_vilg.model.partition import stage_bounds
from ernie_vilg.model.transformer import layer_list
from ernie_vilg.planning.rank_layers import rank_layers


@dataclass(frozen=True, kw_only=True)
class StageShard:
    """The parameters of each rank of a pipeline stage."""

    layers: range
    """Indices of the stage's layers in the list of layers."""
    shapes: Mapping[str, torch.Size]
    """Shapes of each tensor rank's parameters by name, which starts with the layer's index."""
    flops: int
    """Operations of all tensor ranks of the stage in the forward pass, per pair."""

    @property
    def num_parameters(self) -> int:
        """Number of parameters of one rank, before ZeRO partitions them."""
        return sum(shape.numel() for shape in self.shapes.values())

    def num_trained(self, config: ModelConfig) -> int:
        """Return the number of these parameters that the optimizer has."""
        return sum(
            shape.numel()
            for name, shape in self.shapes.items()
            if has_optimizer_state(name, config)
        )


def stage_shards(config: ModelConfig, layout: ParallelismConfig) -> list[StageShard]:
    """Return the shard of each stage, first stage first; a run without a pipeline has one stage.

    Args:
        config: the model's shape.
        layout: a layout that is legal for it.
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
    # All blocks have the shapes of the first, but for adapters that only some have.
    has_adapters = config.lora.rank > 0
    like = {index: index if index in (0, last) or has_adapters else 1 for index in stage}
    shapes = {
        f"{index}.{name}": shape
        for index in stage
        for name, shape in _layer_shapes(config, tensor_size, like[index])
    }
    if len(stage) <= last:  # first and last stage each have a copy of tied weights
        return shapes
    return {name: shape for name, shape in shapes.items() if original_name(name, config) == name}


@lru_cache(maxsize=256)
def _layer_shapes(
    config: ModelConfig, tensor_size: int, index: int
) -> tuple[tuple[str, torch.Size], ...]:
    kind, arguments = layer_list(config, rank_layers(tensor_size))[index]
    with torch.device("meta"), Uninitialized():
        layer = kind(*arguments)
    return tuple((name, parameter.shape) for name, parameter in layer.named_parameters())
