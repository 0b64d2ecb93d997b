"""The peak memory of every rank of a layout, before there is one.

Source: ours; the bytes per parameter are those of DeepSpeed 0.19 (arXiv:1910.02054).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.model.shard_layers import StageShard, stage_shards
from ernie_vilg.planning.layer_memory import (
    Variant,
    block_trace,
    embedding_trace,
    head_trace,
    hidden_bytes,
    is_column_block,
)

REDUCE_BUCKET = 500_000_000
"""Elements of DeepSpeed's buffer for gradients on their way to other ranks, its default."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What the worst rank of a pipeline stage needs, in bytes, at the moment it needs most."""

    weights: int
    """That the model computes with, and the masks of its attention."""
    gradients: int
    """Of the weights."""
    optimizer: int
    """float32 weights, two moments, and the average where one is kept."""
    activations: int
    """Kept for the backward pass, and what the running layer needs on top."""
    workspace: int
    """DeepSpeed's and megatron-core's buffers."""
    logits: int
    """Of the head, and what its loss makes of them."""
    fragmentation: int
    """Held by the allocator in pieces that fit nothing."""
    host: int
    """In host memory: an offloaded optimizer."""

    @property
    def total(self) -> int:
        """All that is on the device."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.workspace
            + self.logits
            + self.fragmentation
        )


def estimate_memory(
    config: PretrainConfig,
    world_size: int,
    precision: torch.dtype,
    device_type: str = "cuda",
) -> list[MemoryEstimate]:
    """Return the peak of each pipeline stage, first stage first; one without a pipeline.

    Args:
        config: the run.
        world_size: ranks.
        precision: of weights and activations.
        device_type: cuda or cpu.

    Raises:
        ValueError: the layout is not legal for so many ranks.
    """
    layout = config.parallelism
    data_size = layout.data_parallel_size(world_size)
    num_micro_batches = layout.num_micro_batches(world_size)
    variant = Variant(
        model=config.model,
        objective=config.objective,
        precision=precision,
        device_type=device_type,
        tensor_size=layout.tensor_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        checkpointing=layout.activation_checkpointing,
    )
    stages = _stages(config.model, layout.tensor_parallel_size, layout.pipeline_parallel_size)
    return [
        _estimate(config, variant, stages, index, data_size, num_micro_batches)
        for index in range(len(stages))
    ]


@lru_cache(maxsize=64)
def _stages(model: ModelConfig, tensor_size: int, num_stages: int) -> tuple[StageShard, ...]:
    layout = ParallelismConfig(
        tensor_parallel_size=tensor_size,
        pipeline_parallel_size=num_stages,
        micro_batch_size=1,
        global_batch_size=1,
    )
    return tuple(stage_shards(model, layout))


def _estimate(
    config: PretrainConfig,
    variant: Variant,
    stages: Sequence[StageShard],
    index: int,
    data_size: int,
    num_micro_batches: int,
) -> MemoryEstimate:
    layout = config.parallelism
    stage, size = stages[index], layout.micro_batch_size
    count = stage.num_parameters
    share = -(-count // data_size)
    item, zero = variant.precision.itemsize, layout.zero_stage
    is_last = index == len(stages) - 1
    in_flight = min(len(stages) - index, num_micro_batches)
    activations, logits = _activations(variant, stage, size, is_last=is_last)
    kept = sum(layer.kept for layer in _blocks(variant, stage, size))
    boundary = hidden_bytes(variant, size) if len(stages) > 1 else 0
    activations += (in_flight - 1) * (kept + boundary) + 2 * boundary
    is_bf16 = variant.precision == torch.bfloat16
    weights = item * (share if zero == 3 else count)
    gradients = (4 if is_bf16 else item) * (share if zero >= 2 else count)
    if zero == 1 and is_bf16:
        gradients += item * count
    optimizer = 4 * (4 if config.training.ema_decay else 3) * share
    workspace = 0
    if not (zero == 1 and is_bf16):
        workspace += REDUCE_BUCKET * item
    if zero == 3:
        workspace += item * min(count, 1_000_000_000)
    if variant.sequence_parallel:
        workspace += variant.tensor_size * hidden_bytes(variant, size)
    host = 0
    if layout.offload_optimizer:
        host, optimizer = optimizer, 0
    total = weights + gradients + optimizer + activations + workspace + logits
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        workspace=workspace,
        logits=logits,
        fragmentation=total // 20 if variant.device_type == "cuda" else 0,
        host=host,
    )


def _blocks(variant: Variant, stage: StageShard, size: int) -> Iterator:
    for index in stage.layers:
        if 0 < index <= variant.model.num_layers:
            yield block_trace(variant, is_column_block(variant.model, index)).at(size)


def _activations(
    variant: Variant, stage: StageShard, size: int, *, is_last: bool
) -> tuple[int, int]:
    """Return the activations and logits at the peak of one micro-batch."""
    level = embedding_trace(variant).at(size).kept if stage.layers.start == 0 else 0
    peak = (0, 0)
    for layer in _blocks(variant, stage, size):
        peak = max(peak, (level + max(layer.forward_peak, layer.backward_peak), 0))
        level += layer.kept
    if is_last:
        head = head_trace(variant).at(size)
        need = max(head.forward_peak, head.backward_peak)
        peak = max(peak, (level, need), key=sum)
    return peak
