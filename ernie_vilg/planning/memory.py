"""The peak memory of every rank of a layout, predicted without running it.

Tracing finds the memory of layers (`layer_memory`), and DeepSpeed's source code tells that of the
engine (`engine_memory`). This module adds both at each moment of a step.

Source: the bytes per parameter are those of DeepSpeed 0.19 (arXiv:1910.02054).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig
from ernie_vilg.model.lora.names import has_optimizer_state
from ernie_vilg.planning.engine_memory import Moment, StageState, moments
from ernie_vilg.planning.layer_memory import (
    Variant,
    block_memory,
    embedding_memory,
    head_memory,
    hidden_bytes,
    logits_bytes,
    mask_bytes,
)
from ernie_vilg.planning.stage_shards import StageShard, stage_shards
from ernie_vilg.planning.trace import LayerMemory
from ernie_vilg.planning.workload import SUMMED, GradientTraffic

FRAGMENTED_SHARE = 0.04
"""Fraction of the allocated bytes that a GPU loses to fragmentation and kernels' workspace.

It is an allowance, not a measurement: torch's allocator rounds large blocks up to 2 MiB and splits
larger ones, and long runs of one shape lose a few percent to it. `max_memory_allocated` does not
count these bytes, but the limit of a GPU does."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of the worst rank of a pipeline stage at its peak."""

    weights: int
    """Bytes of the weights that the model computes with, and of attention masks."""
    gradients: int
    """Bytes of gradients."""
    optimizer: int
    """Bytes of float32 weights, two moments, and the average where one is kept."""
    activations: int
    """Bytes kept for the backward pass, and temporary tensors of the running layer."""
    workspace: int
    """Bytes of DeepSpeed's buffers."""
    logits: int
    """Bytes of the head's logits and of the tensors of their loss."""
    fragmentation: int
    """Bytes that the allocator holds in unusable pieces."""
    host: int
    """Bytes of an offloaded optimizer in host memory."""

    @property
    def allocated(self) -> int:
        """Bytes allocated on the device, as `torch.cuda.max_memory_allocated` counts them."""
        return self.total - self.fragmentation

    @property
    def total(self) -> int:
        """All bytes on the device."""
        state = self.weights + self.gradients + self.optimizer
        return state + self.activations + self.workspace + self.logits + self.fragmentation


@dataclass(frozen=True, kw_only=True)
class _Peak:
    """Bytes held at the highest point of a micro-batch's passes."""

    activations: int
    logits: int
    gradients: int
    """Bytes of gradients that this pass creates, if no earlier pass has."""

    @property
    def total(self) -> int:
        return self.activations + self.logits + self.gradients


def estimate_memory(
    config: PretrainConfig,
    world_size: int,
    precision: torch.dtype,
    device_type: str = "cuda",
    gradients: GradientTraffic = SUMMED,
) -> list[MemoryEstimate]:
    """Return the peak of each pipeline stage, first stage first.

    Args:
        config: settings of the run.
        world_size: number of ranks.
        precision: number format of weights and activations.
        device_type: cuda or cpu.
        gradients: how gradients get into the sums of ZeRO 1.

    Raises:
        InputError: the layout is not legal for so many ranks.
    """
    layout = config.parallelism
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
    estimates = []
    for index, stage in enumerate(stages):
        state = StageState.of_run(
            config,
            precision,
            world_size,
            num_parameters=stage.num_parameters,
            num_trained=stage.num_trained(config.model),
            largest_parameter=max(
                shape.numel()
                for name, shape in stage.shapes.items()
                if has_optimizer_state(name, config.model)
            ),
            gradients=gradients,
        )
        in_flight = min(len(stages) - index, state.num_micro_batches)
        micro_batches = _MicroBatches(variant, stage, layout.micro_batch_size, in_flight)
        candidates = (_at(moment, state, micro_batches) for moment in moments(state))
        estimates.append(max(candidates, key=lambda estimate: estimate.total))
    return estimates


@lru_cache(maxsize=256)
def _stages(model: ModelConfig, tensor_size: int, num_stages: int) -> tuple[StageShard, ...]:
    layout = ParallelismConfig(
        tensor_parallel_size=tensor_size,
        pipeline_parallel_size=num_stages,
        micro_batch_size=1,
        global_batch_size=1,
    )
    return tuple(stage_shards(model, layout))


def _at(moment: Moment, state: StageState, micro_batches: "_MicroBatches") -> MemoryEstimate:
    """Return the memory of a rank at a moment."""
    gradients = moment.gradients
    activations, logits = micro_batches.held_between, micro_batches.logits_held
    if moment.has_activations:
        keeps = state.gradients.keeps_gradients or not state.has_flat_sums
        is_first = state.num_micro_batches == 1 and state.zero_stage == 1 and keeps
        peak = micro_batches.peak(state.precision.itemsize if is_first else 0)
        activations, logits = peak.activations, peak.logits
        if is_first:
            gradients += peak.gradients - state.precision.itemsize * state.num_trained
    variant = micro_batches.variant
    parts = {
        "weights": moment.weights + micro_batches.masks,
        "gradients": gradients,
        "optimizer": moment.optimizer,
        "activations": activations,
        "workspace": moment.workspace,
        "logits": logits,
    }
    is_gpu = variant.device_type == "cuda"
    fragmentation = int(FRAGMENTED_SHARE * sum(parts.values())) if is_gpu else 0
    return MemoryEstimate(**parts, fragmentation=fragmentation, host=moment.host)


class _MicroBatches:
    """The activations of a stage."""

    def __init__(self, variant: Variant, stage: StageShard, size: int, in_flight: int) -> None:
        """Prepare the estimate for a stage.

        Args:
            variant: model and layout.
            stage: layers and parameters of the stage.
            size: pairs per micro-batch.
            in_flight: number of micro-batches whose activations the stage keeps at once.
        """
        self.variant = variant
        self._size = size
        self._in_flight = in_flight
        self._is_first = stage.layers.start == 0
        self._is_last = stage.layers.stop == variant.model.num_layers + 2
        self._blocks = range(
            max(stage.layers.start, 1), min(stage.layers.stop, variant.model.num_layers + 1)
        )
        self._parameters: Counter[int] = Counter()
        for name, shape in stage.shapes.items():
            if has_optimizer_state(name, variant.model):
                self._parameters[int(name.partition(".")[0])] += shape.numel()
        has_pipeline = not (self._is_first and self._is_last)
        self._boundary = hidden_bytes(variant, size) if has_pipeline else 0

    @property
    def masks(self) -> int:
        """Bytes of attention masks: on a GPU every block has its own."""
        copies = len(self._blocks) if self.variant.device_type == "cuda" else 1
        return copies * mask_bytes(self.variant.model)

    @property
    def held_between(self) -> int:
        """Bytes that the pipeline keeps between micro-batches.

        They are the receive buffer of each neighbour. The last stage also never releases its
        outputs, whose graphs keep the input of every buffer slot and that input's gradient.
        """
        if not self._boundary:
            return 0
        incoming = (not self._is_first) + (not self._is_last)
        reached = 2 * self._num_slots if self._is_last else 0
        return (incoming + reached) * self._boundary

    @property
    def _received(self) -> int:
        """Bytes of a middle stage's inputs: one per micro-batch, and a copy of the running one."""
        is_middle = not (self._is_first or self._is_last)
        return (self._in_flight + 1) * self._boundary if is_middle else 0

    @property
    def logits_held(self) -> int:
        """Bytes of logits that the engine keeps between micro-batches."""
        return self._num_slots * logits_bytes(self.variant, self._size) if self._is_last else 0

    @property
    def _num_slots(self) -> int:
        """Number of buffer slots of DeepSpeed's pipeline: at least two."""
        return max(2, self._in_flight) if self._boundary else 1

    def peak(self, gradient_size: int) -> _Peak:
        """Return the highest point of a pass forward and backward.

        Args:
            gradient_size: bytes per parameter of gradients that no earlier pass has created; 0 if
                they exist already, or are freed with the layer.
        """
        peaks = list(self._points(gradient_size))
        return max(peaks, key=lambda peak: peak.total)

    def _points(self, gradient_size: int) -> Iterator[_Peak]:
        layers = [(index, self._memory(index)) for index in self._layers()]
        passing = sum(memory.kept for _, memory in layers)
        level = (self._in_flight - 1) * (passing + self._boundary)
        level += self.held_between + self._received
        if self._is_last:  # logits in the other buffer slots
            level += (self._num_slots - 1) * logits_bytes(self.variant, self._size)
        made = gradient_size * sum(self._parameters.values())
        for index, memory in layers:
            made -= gradient_size * self._parameters[index]  # created by the layers behind
            for need, gradients in ((memory.forward_peak, 0), (memory.backward_peak, made)):
                is_head = index == self.variant.model.num_layers + 1
                yield _Peak(
                    activations=level if is_head else level + need,
                    logits=need if is_head else 0,
                    gradients=gradients,
                )
            level += memory.kept

    def _layers(self) -> Iterator[int]:
        if self._is_first:
            yield 0
        yield from self._blocks
        if self._is_last:
            yield self.variant.model.num_layers + 1

    def _memory(self, index: int) -> LayerMemory:
        if index == 0:
            return embedding_memory(self.variant, self._size)
        if index > self.variant.model.num_layers:
            return head_memory(self.variant, self._size)
        return block_memory(self.variant, index, self._size)
