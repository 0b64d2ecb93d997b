"""Pipeline stages of about equal cost.

Source: DeepSpeed's PipelineModule (https://github.com/deepspeedai/DeepSpeed).
"""

import contextlib
import io

import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.model.flops import layer_flops
from ernie_vilg.model.initialization import TIED, Uninitialized
from ernie_vilg.model.layers import ParallelLayers
from ernie_vilg.model.partition import stage_bounds
from ernie_vilg.model.transformer import layer_list
from ernie_vilg.parallel.engine.library_patches import stages_starting_at, tie_weights
from ernie_vilg.parallel.engine.pipeline_loss import PipelineLoss
from ernie_vilg.parallel.layout.groups import Groups, group_through


def build_stage(
    config: ModelConfig, layers: ParallelLayers, groups: Groups, loss: PipelineLoss
) -> PipelineModule:
    """Build this rank's stage, and no other layers."""
    topology = PipeModelDataParallelTopology(
        num_pp=groups.pipeline_size, num_mp=groups.tensor_size, num_dp=groups.data_size
    )
    bounds = stage_bounds(layer_flops(config), groups.pipeline_size)
    with (
        contextlib.redirect_stdout(io.StringIO()),  # DeepSpeed prints its partition
        stages_starting_at(bounds),
        Uninitialized(),
    ):
        module = PipelineModule(
            layers=[LayerSpec(cls, *arguments) for cls, arguments in layer_list(config, layers)],
            topology=topology,
            loss_fn=loss,
            partition_method="type:Block",
        )
    assert module.parts == bounds, "DeepSpeed no longer asks partition_balanced for the bounds"
    if config.tied_embeddings and not config.lora.rank:  # with adapters, both keep their values
        _tie_first_and_last_stage(module, groups)
    return module


def _tie_first_and_last_stage(module: PipelineModule, groups: Groups) -> None:
    """Sum the gradients of both stages' copies of the embedding tables.

    The copies start equal (ernie_vilg.model.initialization) and stay equal.
    """
    ends: list[nn.Parameter] = []
    if groups.pipeline_rank == 0:
        embedding = module.forward_funcs[0]
        ends = [getattr(embedding, table).weight for table in TIED.values()]
    elif groups.pipeline_rank == groups.pipeline_size - 1:
        head = module.forward_funcs[-1]
        ends = [getattr(head, output).weight for output in TIED]
        for weight in ends:
            weight.ds_pipe_replicated = True  # type: ignore[attr-defined]  # the norm counts the first stage's copy
    # [pipeline, data * tensor]; the ends are its first and last rows
    ranks = torch.arange(groups.world_size).view(groups.pipeline_size, -1)
    tie_weights(module, ends, group_through(groups.rank, ranks[[0, -1]].T))
