"""Layers that hold `1 / tensor_size` of their weights.

Linear layers are this project's (`split_linear`), so that blocks compile; the embedding is
megatron-core's. Parameters have the names of torch's layers, so that all layouts name them equally.

Source: megatron-core (https://github.com/NVIDIA/Megatron-LM), arXiv:1909.08053.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import VocabParallelEmbedding
from torch import Tensor, nn

from ernie_vilg.config.pretrain import ParallelismConfig
from ernie_vilg.model.cross_entropy import VocabularySplit, vocab_cross_entropy
from ernie_vilg.model.layers import ParallelLayers, unchanged
from ernie_vilg.parallel.engine.split_linear import (
    ColumnLinear,
    RowLinear,
    join_tokens,
    ranks_of,
    split_tokens,
)
from ernie_vilg.parallel.layout.groups import Groups, timeout_seconds_of


def tensor_parallel_layers(groups: Groups, layout: ParallelismConfig) -> ParallelLayers:
    """Return constructors of layers split over `groups.tensor_group`; all ranks must call it.

    It also sets megatron-core's global state.
    """
    _start_megatron(groups)
    whole = ranks_of(groups.tensor_group, split_tokens=False)
    inside = ranks_of(groups.tensor_group, split_tokens=layout.sequence_parallel)
    this_rank = inside, groups.tensor_rank
    return ParallelLayers(
        column_linear=partial(ColumnLinear, inside),
        row_linear=partial(RowLinear, inside),
        output_linear=partial(ColumnLinear, whole),
        join_linear=partial(RowLinear, whole),
        vocab_embedding=partial(VocabParallelEmbedding, **_embedding_arguments(groups)),
        split_tokens=partial(split_tokens, *this_rank) if inside.split_tokens else unchanged,
        join_tokens=partial(join_tokens, *this_rank) if inside.split_tokens else unchanged,
        cross_entropy=partial(vocab_cross_entropy, split=_vocabulary_split(groups)),
        size=groups.tensor_size,
        activation_checkpointing=layout.activation_checkpointing,
    )


def _embedding_arguments(groups: Groups) -> dict[str, Any]:
    config = ModelParallelConfig(
        tensor_model_parallel_size=groups.tensor_size,
        pipeline_model_parallel_size=groups.pipeline_size,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,  # the engine moves the layers to the device
        perform_initialization=False,  # ernie_vilg.model.initialization does it
    )
    # init_method is required but unused without perform_initialization.
    return {"config": config, "init_method": nn.init.zeros_, "tp_group": groups.tensor_group}


def _vocabulary_split(groups: Groups) -> VocabularySplit:
    reduced = partial(_reduced, groups.tensor_group)
    return VocabularySplit(
        rank=groups.tensor_rank,
        maximum=partial(reduced, dist.ReduceOp.MAX),
        total=partial(reduced, dist.ReduceOp.SUM),
    )


def _reduced(group: dist.ProcessGroup, operation: Any, values: Tensor) -> Tensor:
    result = values.clone()
    dist.all_reduce(result, op=operation, group=group)
    return result


def _start_megatron(groups: Groups) -> None:
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=groups.tensor_size,
            pipeline_model_parallel_size=groups.pipeline_size,
            distributed_timeout_minutes=timeout_seconds_of(groups.tensor_group) / 60,
            create_gloo_process_groups=False,  # nothing uses them; ours have gloo
        )
    coordinates = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
    )
    expected = (groups.tensor_rank, groups.data_rank, groups.pipeline_rank)
    if coordinates != expected:
        raise RuntimeError(
            f"rank {groups.rank} has the coordinates (tensor, data, pipeline) {coordinates} in "
            f"megatron-core and {expected} in this layout: install the versions in constraints.txt"
        )
