"""From settings to an engine: which layers, which engine, which fresh weights.

Source: ours.
"""

import warnings

import torch
from torch import nn

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.initialization import initialize, split_dimension
from ernie_vilg.model.layers import SINGLE_DEVICE, ParallelLayers
from ernie_vilg.model.loss import Objective
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine import (
    Engine,
    EngineSettings,
    PipelineEngine,
    PipelineLoss,
    PlainEngine,
    join_deepspeed,
)
from ernie_vilg.parallel.groups import Groups
from ernie_vilg.parallel.pipeline import build_stage


def build_engine(config: PretrainConfig, groups: Groups, precision: torch.dtype) -> Engine:
    """Build the model with fresh weights and spread it over the ranks; all ranks must call.

    Args:
        config: the run.
        groups: the layout's process groups.
        precision: of weights and activations.
    """
    join_deepspeed()
    layers = _parallel_layers(groups)
    objective = Objective(config.objective, layers)
    settings = EngineSettings(
        parallelism=config.parallelism,
        optimizer=config.optimizer,
        precision=precision,
        num_micro_batches=config.parallelism.num_micro_batches(groups.world_size),
    )
    if groups.pipeline_size > 1:
        loss = PipelineLoss(objective, groups.device)
        model = build_stage(config.model, layers, groups, loss)
    else:
        model = build_transformer(config.model, layers)
    initialize(
        model.named_parameters(),
        config.model,
        config.training.seed,
        tensor_rank=groups.tensor_rank,
        tensor_size=groups.tensor_size,
    )
    mark_split_parameters(model)
    if groups.pipeline_size > 1:
        return PipelineEngine(model, loss, settings, groups)
    return PlainEngine(model, objective, settings, groups)


def _parallel_layers(groups: Groups) -> ParallelLayers:
    if groups.tensor_size == 1:
        return SINGLE_DEVICE
    # Imported only where it is used: megatron-core takes 5 seconds to import, which every
    # start without tensor parallelism would pay.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Transformer Engine and Apex, which we do not use
        from ernie_vilg.parallel.tensor_parallel import tensor_parallel_layers

    return tensor_parallel_layers(groups)


def mark_split_parameters(module: nn.Module) -> None:
    """Tell DeepSpeed which parameters differ along the tensor axis.

    Its gradient norm counts those of every tensor rank, and the others once.
    """
    for name, parameter in module.named_parameters():
        parameter.tensor_model_parallel = split_dimension(name) is not None  # type: ignore[attr-defined]
