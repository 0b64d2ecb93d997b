"""Layers that hold `1 / tensor_size` of their weights, from megatron-core.

Parameter names are those of torch's layers, so that weights move freely between layouts.

Source: megatron-core (https://github.com/NVIDIA/Megatron-LM), arXiv:1909.08053.
"""

from functools import partial

import torch
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    vocab_parallel_cross_entropy,
)
from torch import Tensor, nn

from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.parallel.groups import Groups


class ColumnLinear(ColumnParallelLinear):
    """megatron-core's layer with torch's signature: a tensor in, a tensor out."""

    # megatron-core's own puts an entry without a tensor into the state, on which DeepSpeed's
    # converter stumbles; torch leaves the entry out where this method is its own.
    get_extra_state = nn.Module.get_extra_state

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., in] to [..., out / size]."""
        # megatron-core's backward takes two or three dimensions, not four.
        output, _ = super().forward(hidden.flatten(0, -2))
        return output.unflatten(0, hidden.shape[:-1])


class RowLinear(RowParallelLinear):
    """megatron-core's layer with torch's signature: a tensor in, a tensor out."""

    get_extra_state = nn.Module.get_extra_state  # see ColumnLinear

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., in / size] to [..., out], summed over the group."""
        # megatron-core's backward takes two or three dimensions, not four.
        output, _ = super().forward(hidden.flatten(0, -2))
        return output.unflatten(0, hidden.shape[:-1])


def tensor_parallel_layers(groups: Groups) -> ParallelLayers:
    """Return constructors of layers split over `groups.tensor_group`.

    megatron-core's cross-entropy finds its group in global state, which this sets up. All
    ranks must call it.
    """
    _start_megatron(groups)
    config = ModelParallelConfig(
        tensor_model_parallel_size=groups.tensor_size,
        pipeline_model_parallel_size=groups.pipeline_size,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,  # the engine moves the layers to the device
        perform_initialization=False,  # ernie_vilg.model.initialization does, for all layouts
    )
    # init_method is required but unused without perform_initialization.
    shared = {
        "config": config,
        "init_method": nn.init.zeros_,
        "tp_group": groups.tensor_group,
    }
    return ParallelLayers(
        column_linear=partial(ColumnLinear, gather_output=False, **shared),
        row_linear=partial(
            RowLinear, bias=True, input_is_parallel=True, skip_bias_add=False, **shared
        ),
        vocab_embedding=partial(VocabParallelEmbedding, **shared),
        cross_entropy=_cross_entropy,
        size=groups.tensor_size,
    )


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    # megatron-core overwrites the logits while it works on them: it gets a copy.
    return vocab_parallel_cross_entropy(logits.to(torch.float32, copy=True), targets)


def _start_megatron(groups: Groups) -> None:
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=groups.tensor_size,
            pipeline_model_parallel_size=groups.pipeline_size,
        )
    theirs = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    ours = (groups.tensor_rank, groups.data_rank, groups.pipeline_rank)
    if theirs != ours:
        raise RuntimeError(
            f"rank {groups.rank} is (tensor, data, pipeline) {theirs} to megatron-core and {ours} "
            "to us: the versions in constraints.txt agree, install those"
        )
