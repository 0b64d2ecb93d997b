"""Builds an engine from a run's settings: its layers, its weights, its optimizer."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.block import Block
from ernie_vilg.model.initialization import (
    initialize,
    is_in_block,
    is_inner_matrix,
    split_dimension,
)
from ernie_vilg.model.layers import SINGLE_DEVICE, ParallelLayers
from ernie_vilg.model.linear import IS_FP8
from ernie_vilg.model.loss import Objective
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine.engine import Engine, PipelineEngine, PlainEngine, join_deepspeed
from ernie_vilg.parallel.engine.library_patches import groups_with_timeout
from ernie_vilg.parallel.engine.optimizer import freeze
from ernie_vilg.parallel.engine.pipeline import build_stage
from ernie_vilg.parallel.engine.pipeline_loss import PipelineLoss
from ernie_vilg.parallel.engine.settings import EngineSettings
from ernie_vilg.parallel.engine.updates import partial_parameters
from ernie_vilg.parallel.layout.groups import Groups, timeout_seconds_of


def build_engine(
    config: PretrainConfig,
    groups: Groups,
    precision: torch.dtype,
    decoder: Mapping[str, Tensor] | None = None,
    codebook: Tensor | None = None,
    start: Callable[[str], Tensor] | None = None,
) -> Engine:
    """Build the model with its first weights and shard it over the ranks; all ranks must call.

    Args:
        config: the run.
        groups: the layout's process groups.
        precision: data type of weights and activations.
        decoder: weights by name of the image tokenizer's decoder, with which the reconstructor
            starts; None: fresh weights.
        codebook: vectors of the image tokenizer's codes, float32 [codebook, embedding], with which
            the image embeddings start; None: fresh weights.
        start: returns an earlier run's whole weights by name, with which everything starts; None:
            fresh weights.
    """
    with groups_with_timeout(timeout_seconds_of(dist.group.WORLD)):
        return _build(config, groups, precision, decoder=decoder, codebook=codebook, start=start)


def _build(
    config: PretrainConfig,
    groups: Groups,
    precision: torch.dtype,
    **first_weights: Any,
) -> Engine:
    join_deepspeed()
    layers = _parallel_layers(config, groups)
    objective = Objective(config.objective, layers)
    num_micro_batches = config.parallelism.num_micro_batches(groups.world_size)
    settings = EngineSettings(run=config, precision=precision, num_micro_batches=num_micro_batches)
    if groups.pipeline_size > 1:
        loss = PipelineLoss(objective, config.model, groups.device)
        model = build_stage(config.model, layers, groups, loss)
    else:
        model = build_transformer(config.model, layers)
    initialize(
        model.named_parameters(),
        config.model,
        config.training.seed,
        tensor_rank=groups.tensor_rank,
        tensor_size=groups.tensor_size,
        **first_weights,
    )
    mark_split_parameters(model)
    freeze(model.named_parameters(), config.model, config.training.frozen)
    if config.linear_precision == "fp8":
        mark_fp8_weights(model, config.model)
    _undo_gradient_scaling(model, config.model.block_gradient_scale)
    _prepare_blocks(model, config, groups.device)
    engine: Engine
    if groups.pipeline_size > 1:
        engine = PipelineEngine(model, loss, settings, groups)
    else:
        engine = PlainEngine(model, objective, settings, groups)
    if not engine.shards.flat_groups():
        _sum_partial_gradients(model, config, groups)
    return engine


def _parallel_layers(config: PretrainConfig, groups: Groups) -> ParallelLayers:
    layout = config.parallelism
    if groups.tensor_size == 1:
        return replace(SINGLE_DEVICE, activation_checkpointing=layout.activation_checkpointing)
    # megatron-core takes 5 seconds to import: runs without tensor parallelism do without.
    logging.getLogger("megatron").setLevel(logging.WARNING)  # it logs notes about its own FSDP
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that Transformer Engine and Apex are missing
        from ernie_vilg.parallel.engine.tensor_parallel import tensor_parallel_layers

    return tensor_parallel_layers(groups, layout)


def mark_split_parameters(module: nn.Module) -> None:
    """Mark the parameters that tensor parallelism splits.

    DeepSpeed's gradient norm counts marked parameters on every tensor rank, and others on one.
    """
    for name, parameter in module.named_parameters():
        parameter.tensor_model_parallel = split_dimension(name) is not None  # type: ignore[attr-defined]


def mark_fp8_weights(module: nn.Module, config: ModelConfig) -> None:
    """Mark the weights whose products multiply 8-bit floats.

    The first and the last block are the most sensitive to rounding and keep the run's precision, as
    embedding, head and reconstructor do.

    Args:
        module: the model or a stage of it.
        config: the model's shape.
    """
    for name, parameter in module.named_parameters():
        if is_inner_matrix(name, config):
            setattr(parameter, IS_FP8, True)


def _undo_gradient_scaling(model: nn.Module, scale: float) -> None:
    for name, parameter in model.named_parameters():
        if scale != 1 and parameter.requires_grad and is_in_block(name):
            parameter.register_hook(partial(torch.mul, other=1 / scale))


def _sum_partial_gradients(model: nn.Module, config: PretrainConfig, groups: Groups) -> None:
    """Sum partial gradients in every pass, before DeepSpeed sees them.

    The update of ZeRO 1 sums them once per step.
    """
    for parameter in partial_parameters(dict(model.named_parameters()), config, groups):
        parameter.register_hook(partial(_summed, group=groups.tensor_group))


def _summed(gradient: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = gradient.clone()
    dist.all_reduce(total, group=group)
    return total


def _prepare_blocks(model: nn.Module, config: PretrainConfig, device: torch.device) -> None:
    for module in model.modules():
        if isinstance(module, Block):
            if device.type == "cuda":
                module.attention.block_sparse.build(device)
            if config.compile_blocks:
                module.compile(fullgraph=True, dynamic=False)
