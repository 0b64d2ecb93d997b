"""Layers that hold `1 / tensor_size` of their weights, from megatron-core.

Parameter names are those of torch's layers, so that weights move freely between layouts.

Source: megatron-core (https://github.com/NVIDIA/Megatron-LM), arXiv:1909.08053.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)
from torch import Tensor, nn

from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.model.layers import ParallelLayers, unchanged
from ernie_vilg.parallel.engine.library_patches import allocate_on_cpu_without_gpu
from ernie_vilg.parallel.layout.groups import Groups


class ColumnLinear(ColumnParallelLinear):
    """megatron-core's layer with torch's signature: a tensor in, a tensor out."""

    # megatron-core's own puts an entry without a tensor into the state, on which DeepSpeed's
    # converter stumbles; torch leaves the entry out where this method is its own.
    get_extra_state = nn.Module.get_extra_state

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., in] to [..., out / size], or shared tokens to [tokens, out / size]."""
        # megatron-core's backward takes two or three dimensions, not four.
        output, _ = super().forward(hidden.flatten(0, -2))
        return output if self.sequence_parallel else output.unflatten(0, hidden.shape[:-1])


class RowLinear(RowParallelLinear):
    """megatron-core's layer with torch's signature: a tensor in, a tensor out."""

    get_extra_state = nn.Module.get_extra_state  # see ColumnLinear

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., in / size] to [..., out], or to this rank's share of the tokens."""
        # megatron-core's backward takes two or three dimensions, not four.
        output, _ = super().forward(hidden.flatten(0, -2))
        return output if self.sequence_parallel else output.unflatten(0, hidden.shape[:-1])


def tensor_parallel_layers(groups: Groups, layout: ParallelismConfig) -> ParallelLayers:
    """Return constructors of layers split over `groups.tensor_group`.

    megatron-core's cross-entropy finds its group in global state, which this sets up. All
    ranks must call it.
    """
    _start_megatron(groups)
    group = groups.tensor_group
    whole = _layer_arguments(groups, sequence_parallel=False)
    inside = _layer_arguments(groups, sequence_parallel=layout.sequence_parallel)
    column: dict[str, Any] = {"gather_output": False}
    row: dict[str, Any] = {"bias": True, "input_is_parallel": True, "skip_bias_add": False}
    return ParallelLayers(
        column_linear=partial(ColumnLinear, **column, **inside),
        row_linear=partial(RowLinear, **row, **inside),
        output_linear=partial(ColumnLinear, **column, **whole),
        join_linear=partial(RowLinear, **row, **whole),
        vocab_embedding=partial(VocabParallelEmbedding, **whole),
        split_tokens=partial(_split_tokens, group) if layout.sequence_parallel else unchanged,
        join_tokens=partial(_join_tokens, group) if layout.sequence_parallel else unchanged,
        cross_entropy=_cross_entropy,
        log_partition=partial(_log_partition, group),
        size=groups.tensor_size,
        activation_checkpointing=layout.activation_checkpointing,
    )


def _layer_arguments(groups: Groups, *, sequence_parallel: bool) -> dict[str, Any]:
    config = ModelParallelConfig(
        tensor_model_parallel_size=groups.tensor_size,
        pipeline_model_parallel_size=groups.pipeline_size,
        pipeline_dtype=torch.float32,
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=True,  # the engine moves the layers to the device
        perform_initialization=False,  # ernie_vilg.model.initialization does, for all layouts
    )
    # init_method is required but unused without perform_initialization.
    return {"config": config, "init_method": nn.init.zeros_, "tp_group": groups.tensor_group}


def _split_tokens(group: dist.ProcessGroup, hidden: Tensor) -> Tensor:
    return scatter_to_sequence_parallel_region(hidden.flatten(0, -2), group=group)


def _join_tokens(group: dist.ProcessGroup, tokens: Tensor) -> Tensor:
    # What follows is computed alike on every rank of the group, or split by layers that sum
    # their input's gradient themselves: every rank has the whole gradient, and takes its share.
    return gather_from_sequence_parallel_region(
        tokens, tensor_parallel_output_grad=False, group=group
    )


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    # megatron-core overwrites the logits while it works on them: it gets a copy.
    return vocab_parallel_cross_entropy(logits.to(torch.float32, copy=True), targets)


def _log_partition(group: dist.ProcessGroup, logits: Tensor) -> Tensor:
    logits = logits.float()
    highest = logits.detach().amax(dim=-1)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    share = (logits - highest[..., None]).exp().sum(dim=-1)
    return reduce_from_tensor_model_parallel_region(share, group=group).log() + highest


def _start_megatron(groups: Groups) -> None:
    allocate_on_cpu_without_gpu()
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
