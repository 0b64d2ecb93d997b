"""What DeepSpeed's three optimizers keep of weights, gradients and state, and when.

A step has moments at which memory may be highest: the backward pass, with activations; and the
reduction of gradients after it, without, but with copies of them. `moments` says what the engine
itself holds at each; whoever adds the activations finds the peak.

Source: DeepSpeed 0.19.8, runtime/bf16_optimizer.py, runtime/engine.py (allreduce_bucket),
runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py; measured by benchmarks/plan_memory.py.
"""

from dataclasses import dataclass

import torch

from ernie_vilg.config.pretrain import PretrainConfig

REDUCE_BUCKET = 500_000_000
"""Elements of the buffer for gradients on their way to other ranks, allocated whole (ZeRO 1 and 2
but for bf16's ZeRO 1, which has none; ZeRO 3)."""
GATHERED_AT_ONCE = 50_000_000
"""Elements that ZeRO 3 gathers ahead in one message, whose buffer is then copied apart."""
GATHERED_AT_MOST = 1_000_000_000
"""Elements of whole weights that ZeRO 3 keeps for use again."""


@dataclass(frozen=True, kw_only=True)
class StageState:
    """What decides what the engine holds on one rank."""

    num_parameters: int
    """Of the stage's tensor share."""
    largest_parameter: int
    """Elements of the largest of them."""
    precision: torch.dtype
    """Of weights and activations."""
    zero_stage: int
    """1, 2 or 3."""
    data_size: int
    """Replicas."""
    num_micro_batches: int
    """Per step."""
    has_pipeline: bool
    """Whether the pipeline engine runs."""
    has_average: bool
    """Whether the optimizer keeps an average of the weights."""
    is_offloaded: bool
    """Whether the optimizer's state is in host memory."""

    @classmethod
    def of_run(
        cls,
        config: PretrainConfig,
        precision: torch.dtype,
        world_size: int,
        *,
        num_parameters: int,
        largest_parameter: int,
    ) -> "StageState":
        """Return that of a stage."""
        layout = config.parallelism
        return cls(
            num_parameters=num_parameters,
            largest_parameter=largest_parameter,
            precision=precision,
            zero_stage=layout.zero_stage,
            data_size=layout.data_parallel_size(world_size),
            num_micro_batches=layout.num_micro_batches(world_size),
            has_pipeline=layout.pipeline_parallel_size > 1,
            has_average=config.training.ema_decay > 0,
            is_offloaded=layout.offload_optimizer,
        )

    @property
    def share(self) -> int:
        """Parameters whose state this replica keeps; the last replica's share is padded."""
        return -(-self.num_parameters // self.data_size)

    @property
    def sums_in_float32(self) -> bool:
        """Whether gradients of micro-batches are summed in another precision than theirs."""
        return self.precision == torch.bfloat16

    @property
    def has_bf16_optimizer(self) -> bool:
        """Whether DeepSpeed's BF16_Optimizer runs, rather than those of ZeRO."""
        return self.sums_in_float32 and self.zero_stage == 1 and not self.is_offloaded


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What the engine holds on one rank at a moment of a step, in bytes."""

    weights: int
    """That the model computes with."""
    gradients: int
    """Of the weights, in all their copies that outlive a layer's backward pass."""
    optimizer: int
    """float32 weights, two moments, and the average where one is kept."""
    workspace: int
    """Buffers of messages."""
    host: int
    """In host memory."""
    has_activations: bool
    """Whether those of the micro-batches come on top."""


def moments(state: StageState) -> list[Moment]:
    """Return the moments at which memory may be highest."""
    if state.has_bf16_optimizer:
        return _of_bf16(state)
    return _of_zero_3(state) if state.zero_stage == 3 else _of_zero_1_and_2(state)


def _state_bytes(state: StageState) -> int:
    return 4 * (4 if state.has_average else 3) * state.share


def _of_bf16(state: StageState) -> list[Moment]:
    """Gradients of all weights, in float32 and, of the micro-batches so far, in bf16."""
    count = state.num_parameters
    common = {"weights": 2 * count, "gradients": (4 + 2) * count, "host": 0}
    # All gradients are made one tensor; it is sent in bf16. A tensor beyond the bucket is alone.
    flat = 4 * count if count <= REDUCE_BUCKET else 0
    optimizer = _state_bytes(state)
    return [
        Moment(**common, optimizer=optimizer, workspace=0, has_activations=True),
        Moment(**common, optimizer=optimizer, workspace=flat + 2 * count, has_activations=False),
    ]


def _of_zero_1_and_2(state: StageState) -> list[Moment]:
    """ZeRO 1 keeps gradients of all weights until the step, ZeRO 2 those of its share."""
    item, count, share = state.precision.itemsize, state.num_parameters, state.share
    is_summed_apart = state.sums_in_float32
    if state.zero_stage == 1:
        gradients = (4 if is_summed_apart else item) * count
        bucket = (4 if is_summed_apart else item) * REDUCE_BUCKET
    else:
        gradients = (4 if is_summed_apart else item) * share
        bucket = item * REDUCE_BUCKET
    optimizer, host, buffers = _state_bytes(state), 0, 0
    if state.is_offloaded:
        # Gradients as the optimizer takes them, and the new weights on their way back.
        host = optimizer + (4 + item) * share + item * state.largest_parameter
        optimizer, buffers = 0, item * state.largest_parameter
    common = {"weights": item * count, "optimizer": optimizer, "host": host}
    # The pipeline engine allocates a second bucket where the backward pass has left one.
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
    """Weights are gathered layer by layer, and stay while there is room."""
    item, count, share = state.precision.itemsize, state.num_parameters, state.share
    gathered = min(count, GATHERED_AT_MOST) + min(count, GATHERED_AT_ONCE)
    gradients = (4 if state.sums_in_float32 else item) * share
    optimizer, host = _state_bytes(state), 0
    if state.is_offloaded:
        host, optimizer = optimizer + 4 * share, 0
    return [
        Moment(
            weights=item * share,
            gradients=gradients,
            optimizer=optimizer,
            workspace=item * (REDUCE_BUCKET + gathered),
            host=host,
            has_activations=True,
        )
    ]
