"""Weights, gradients and optimizer state that an engine holds during a step.

Memory may peak at two moments of a step: in the backward pass, with activations, and in the
reduction of gradients after it, without activations but with copies of gradients. `moments` returns
the bytes that the engine itself holds at each; the caller adds the activations.

Source: DeepSpeed 0.19.8, runtime/bf16_optimizer.py, runtime/engine.py (allreduce_bucket),
runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py; measured by benchmarks/plan_memory.py.
"""

from dataclasses import dataclass

import torch

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.planning.workload import SUMMED, GradientTraffic

REDUCE_BUCKET = 500_000_000
"""Elements of the bucket for gradient reduction, allocated whole; ZeRO 1 with float32 sums has
none."""
GATHERED_AT_ONCE = 50_000_000
"""Elements that ZeRO 3 prefetches in one message, whose buffer it then copies out."""
GATHERED_AT_MOST = 1_000_000_000
"""Elements of whole weights that ZeRO 3 keeps for reuse."""


@dataclass(frozen=True, kw_only=True)
class StageState:
    """Everything that determines the bytes that the engine holds on one rank."""

    num_parameters: int
    """Number of parameters that one tensor rank has of the stage."""
    num_trained: int
    """Number of these parameters that the optimizer has, with gradients and state."""
    largest_parameter: int
    """Elements of the largest parameter that the optimizer has."""
    precision: torch.dtype
    """Number format of weights and activations."""
    zero_stage: int
    """ZeRO stage: 1, 2 or 3."""
    data_size: int
    """Number of replicas."""
    num_micro_batches: int
    """Micro-batches per step."""
    has_pipeline: bool
    """Whether the pipeline engine runs."""
    has_average: bool
    """Whether the optimizer keeps an average of the weights."""
    is_offloaded: bool
    """Whether the optimizer's state is in host memory."""
    gradients: GradientTraffic = SUMMED
    """Handling of micro-batches' gradients on their way into float32 sums."""

    @classmethod
    def of_run(
        cls,
        config: PretrainConfig,
        precision: torch.dtype,
        world_size: int,
        *,
        num_parameters: int,
        num_trained: int,
        largest_parameter: int,
        gradients: GradientTraffic = SUMMED,
    ) -> "StageState":
        """Return the state of a stage of a run."""
        layout = config.parallelism
        return cls(
            num_parameters=num_parameters,
            num_trained=num_trained,
            largest_parameter=largest_parameter,
            precision=precision,
            zero_stage=layout.zero_stage,
            data_size=layout.data_parallel_size(world_size),
            num_micro_batches=layout.num_micro_batches(world_size),
            has_pipeline=layout.pipeline_parallel_size > 1,
            has_average=config.training.ema_decay > 0,
            is_offloaded=layout.offload_optimizer,
            gradients=gradients,
        )

    @property
    def num_partitioned(self) -> int:
        """Number of parameters whose state this replica keeps; the last partition is padded."""
        return -(-self.num_trained // self.data_size)

    @property
    def num_weights_of_zero_3(self) -> int:
        """Number of weights that this replica keeps under ZeRO 3; the last partition is padded."""
        return -(-self.num_parameters // self.data_size)

    @property
    def sums_in_float32(self) -> bool:
        """Whether gradients of micro-batches are summed in float32 copies."""
        return self.precision == torch.bfloat16

    @property
    def has_flat_sums(self) -> bool:
        """Whether gradients are added to flat float32 sums of the whole stage."""
        is_scaled = self.precision == torch.float16
        return self.zero_stage == 1 and not self.is_offloaded and not is_scaled


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Bytes that the engine holds on one rank at a moment of a step."""

    weights: int
    """Bytes of the weights that the model computes with."""
    gradients: int
    """Bytes of gradients, in all copies that outlive a layer's backward pass."""
    optimizer: int
    """Bytes of float32 weights, two moments, and the average where one is kept."""
    workspace: int
    """Bytes of communication buffers."""
    host: int
    """Bytes in host memory."""
    has_activations: bool
    """Whether activations of micro-batches must be added."""


def moments(state: StageState) -> list[Moment]:
    """Return the moments at which memory may be highest."""
    if state.has_flat_sums:
        return _of_flat_sums(state)
    return _of_zero_3(state) if state.zero_stage == 3 else _of_zero_1_and_2(state)


def _state_bytes(state: StageState) -> int:
    return 4 * (4 if state.has_average else 3) * state.num_partitioned


def _of_flat_sums(state: StageState) -> list[Moment]:
    """Return the moments of ZeRO 1 with float32 sums, which are reduced where they are."""
    item, count = state.precision.itemsize, state.num_trained
    held = 4 + (item if state.gradients.keeps_gradients else 0)
    weights = item * state.num_parameters
    common = {"weights": weights, "gradients": held * count, "host": 0}
    optimizer = _state_bytes(state)
    if not state.gradients.copies_sums:
        return [Moment(**common, optimizer=optimizer, workspace=0, has_activations=True)]
    # Gradients that are not kept are converted one by one during the pass.
    converted = 0 if state.gradients.keeps_gradients else 4 * state.largest_parameter
    # Sums are flattened into one tensor, which is sent in 16 bits. A tensor that is larger than the
    # bucket is sent by itself.
    flat = 4 * count if count <= REDUCE_BUCKET else 0
    workspace = flat + item * count
    return [
        Moment(**common, optimizer=optimizer, workspace=converted, has_activations=True),
        Moment(**common, optimizer=optimizer, workspace=workspace, has_activations=False),
    ]


def _of_zero_1_and_2(state: StageState) -> list[Moment]:
    """Return the moments of ZeRO 1, which keeps all gradients, or 2, which keeps a partition."""
    item, count, share = state.precision.itemsize, state.num_trained, state.num_partitioned
    is_summed_apart = state.sums_in_float32
    if state.zero_stage == 1:
        gradients = (4 if is_summed_apart else item) * count
        bucket = (4 if is_summed_apart else item) * REDUCE_BUCKET
    else:
        gradients = (4 if is_summed_apart else item) * share
        bucket = item * REDUCE_BUCKET
    optimizer, host, buffers = _state_bytes(state), 0, 0
    if state.is_offloaded:
        # Gradients in the optimizer's precision, and new weights before they are copied back.
        host = optimizer + (4 + item) * share + item * state.largest_parameter
        optimizer, buffers = 0, item * state.largest_parameter
    weights = item * state.num_parameters
    common = {"weights": weights, "optimizer": optimizer, "host": host}
    # The pipeline engine allocates a second bucket beside the one of the backward pass.
    num_buckets = 2 if state.has_pipeline else 1
    incoming = item * share if state.zero_stage == 2 and not is_summed_apart else 0
    return [
        Moment(**common, gradients=gradients, workspace=bucket + buffers, has_activations=True),
        Moment(
            **common,
            gradients=gradients + incoming,
            workspace=num_buckets * bucket + buffers,
            has_activations=False,
        ),
    ]


def _of_zero_3(state: StageState) -> list[Moment]:
    """Return the moment of ZeRO 3, which gathers weights layer by layer and keeps what fits."""
    item, count, share = state.precision.itemsize, state.num_parameters, state.num_partitioned
    gathered = min(count, GATHERED_AT_MOST) + min(count, GATHERED_AT_ONCE)
    gradients = (4 if state.sums_in_float32 else item) * share
    optimizer, host = _state_bytes(state), 0
    if state.is_offloaded:
        host, optimizer = optimizer + 4 * share, 0
    return [
        Moment(
            weights=item * state.num_weights_of_zero_3,
            gradients=gradients,
            optimizer=optimizer,
            workspace=item * (REDUCE_BUCKET + gathered),
            host=host,
            has_activations=True,
        )
    ]
