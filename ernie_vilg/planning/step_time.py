"""Predicted seconds of one optimizer step, part by part.

Every part is an amount over a rate: operations of matrix products over the GPU's peak, bytes of
element-wise passes and of gradients over its memory bandwidth, bytes of collectives over the wires'
bandwidth. `Efficiencies` holds the fractions of these rates that are reached. Constants are fitted
to steps measured on one H100 (docs/planning.md).

Source: the pipeline's bubble is that of 1F1B (arXiv:2104.04473, section 2.2).
"""

from dataclasses import dataclass, fields

from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.planning.communication import replica_seconds, send_seconds, tensor_seconds
from ernie_vilg.planning.workload import Spread, Workload

WAIT_SECONDS = 2.6e-3
"""Seconds that a GPU idles when it has to wait for the host; fitted to the measured rows."""
GATHERS_PER_PASS = 2
"""All-gathers of the weights under ZeRO 3: before the forward and before the backward pass."""

FP8_SPEED = 1.65
"""Rate of 8-bit products over that of 16-bit ones; an assumption."""
FP8_BYTES = 110.0
"""Bytes moved per token and hidden value by the casts of a block with 8-bit products, forward and
backward: 7 hidden values of inputs, 9 of outputs; arithmetic, not measured."""
FP8_WEIGHT_BYTES = 14.0
"""Bytes per parameter and micro-batch of casting weights twice (10), and of adding their gradients
after the product (4)."""


@dataclass(frozen=True, kw_only=True)
class Efficiencies:
    """Factors that are calibrated on measured runs."""

    matrix: float = 1.0
    """Factor on the GPU's own `matrix_efficiency`."""
    attention: float = 1.0
    """Factor on the workload's own `attention_rate`."""
    memory: float = 0.83
    """Fraction of the memory bandwidth that element-wise passes reach: 2.8 of 3.35 TB/s, measured
    on an H100's AdamW."""
    overlap: float = 0.7
    """Fraction of computing time that hides communication among replicas, and fraction of tensor
    ranks' communication that is hidden if it can be; an assumption."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step on the slowest rank; the total is the sum of the parts."""

    matrix: float
    """Seconds of matrix products, forward and backward."""
    attention: float
    """Seconds of attention's scores and sums."""
    elementwise: float
    """Seconds of norms, GELU and residuals."""
    recomputation: float
    """Seconds of recomputing activations."""
    gradients: float
    """Seconds of adding gradients of micro-batches to the step's sums."""
    tensor: float
    """Seconds of collectives among tensor ranks."""
    pipeline: float
    """Seconds of sends between stages."""
    bubble: float
    """Seconds of waiting for other stages."""
    replicas: float
    """Seconds of communication among replicas that nothing hides."""
    optimizer: float
    """Seconds of AdamW and of other passes over gradients at the end of a step, and of transfers if
    it runs on the host."""
    waits: float
    """Seconds in which the GPU waits for the host to read or to launch."""
    data: float
    """Seconds of waiting for samples."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


def step_time(
    workload: Workload, spread: Spread, gpu: GpuConfig, rates: Efficiencies | None = None
) -> StepTime:
    """Predict a step.

    Args:
        workload: workload of the model.
        spread: layout of the workload.
        gpu: kind of GPU.
        rates: calibrated factors; None selects the defaults.
    """
    rates = rates or Efficiencies()
    forward = _forward(workload, spread, gpu, rates)
    passes = spread.num_micro_batches
    again = spread.recomputation
    recomputed = sum(
        getattr(again, part) * forward[part] for part in ("matrix", "attention", "elementwise")
    )
    exposed = 1 - rates.overlap * spread.hidden_tensor_share
    tensor = forward["tensor"] * (1 + again.matrix + exposed)
    sends = send_seconds(workload, spread, gpu) * spread.virtual_stages
    if spread.hides_messages:
        tensor, sends = ((1 - rates.overlap) * seconds for seconds in (tensor, sends))
    parameters = _parameters_of_rank(workload, spread)
    matrix = 3 * (forward["matrix"] + forward["head"])
    moved = spread.gradients.pass_bytes + workload.fp8_share * FP8_WEIGHT_BYTES
    gradients = parameters * moved / (gpu.memory_bandwidth * rates.memory)
    waits = WAIT_SECONDS * spread.gradients.pass_waits
    computed = matrix + 3 * (forward["attention"] + forward["elementwise"]) + recomputed
    busy = computed + gradients + waits + tensor
    bubble = (spread.pipeline - 1) / spread.virtual_stages * (busy + sends)
    computing = passes * (busy + sends) + bubble
    return StepTime(
        matrix=passes * matrix,
        attention=passes * 3 * forward["attention"],
        elementwise=passes * 3 * forward["elementwise"],
        recomputation=passes * recomputed,
        gradients=passes * gradients,
        tensor=passes * tensor,
        pipeline=passes * sends,
        bubble=bubble,
        replicas=_replicas(parameters, spread, gpu, rates.overlap * busy),
        optimizer=_optimizer(parameters, spread, gpu, rates),
        waits=passes * waits + WAIT_SECONDS * spread.gradients.step_waits,
        data=_waiting(workload, spread, computing),
    )


def _parameters_of_rank(workload: Workload, spread: Spread) -> float:
    """Return the number of parameters of a rank of the fullest stage, before ZeRO splits them."""
    blocks = workload.num_layers / spread.pipeline * workload.block_parameters
    return (blocks + workload.outer_parameters / min(spread.pipeline, 2)) / spread.tensor


def _forward(
    workload: Workload, spread: Spread, gpu: GpuConfig, rates: Efficiencies
) -> dict[str, float]:
    """Return the seconds of one micro-batch's forward pass on a stage, by part."""
    layers = -(-workload.num_layers // spread.pipeline)
    samples = spread.micro_batch
    peak = gpu.peak_flops * gpu.matrix_efficiency * rates.matrix
    memory = gpu.memory_bandwidth * rates.memory
    rows = samples * workload.tokens
    # Each product reads its operands and writes its result once. Weights are split, rows are not.
    operands = 2.0 * (
        workload.block_parameters / spread.tensor
        + rows * workload.hidden_size * (4 + 10 / spread.tensor)
    )
    narrow = workload.fp8_share
    matrix = samples * workload.block_flops / spread.tensor / peak
    matrix *= 1 - narrow + narrow / FP8_SPEED
    scores = samples * workload.scored_flops / spread.tensor
    attention = scores / (peak * rates.attention * workload.attention_rate)
    attention += samples * workload.attention_bytes / 3 / spread.tensor / memory
    # Without sequence parallelism, every rank runs half of the element-wise passes in full.
    share = 1 / spread.tensor if spread.sequence_parallel else (1 + 1 / spread.tensor) / 2
    moved = rows * workload.hidden_size * workload.elementwise_bytes / 3 * share
    moved += rows * workload.hidden_size * narrow * FP8_BYTES / 3 / spread.tensor
    # The pipeline is cut by cost, so all stages take an equal part of the head.
    head = samples * workload.head_flops / spread.tensor / peak / spread.pipeline
    return {
        "matrix": layers * max(matrix, operands / memory),
        "attention": layers * attention,
        "elementwise": layers * moved / memory,
        "head": head,
        "tensor": layers * tensor_seconds(workload, spread, gpu),
    }


def _replicas(parameters: float, spread: Spread, gpu: GpuConfig, hidden_by_pass: float) -> float:
    """Return the seconds of communication among replicas that computing does not hide.

    Our ZeRO 1 reduces sums during the last backward pass, and gathers weights when all is done.
    DeepSpeed's ZeRO 2 reduces in every pass, and its ZeRO 3 overlaps that with computing.
    Megatron-LM's optimizer overlaps the reduction with the last backward pass, and the all-gather
    with the first forward pass.
    """
    weights = replica_seconds(2 * parameters, spread, gpu)
    gradients = replica_seconds(spread.gradient_bytes * parameters, spread, gpu)
    if spread.hides_messages:
        exposed = weights - hidden_by_pass / 3, gradients - hidden_by_pass * 2 / 3
        return sum(max(seconds, 0.0) for seconds in exposed)
    if spread.zero_stage == 1:
        hidden = hidden_by_pass * 2 / 3 if spread.reduces_early else 0.0
        return weights + max(gradients - hidden, 0.0)
    if spread.zero_stage == 2:
        return weights + spread.num_micro_batches * gradients
    exchanged = GATHERS_PER_PASS * weights + gradients
    return spread.num_micro_batches * max(exchanged - hidden_by_pass, 0.0)


def _optimizer(parameters: float, spread: Spread, gpu: GpuConfig, rates: Efficiencies) -> float:
    mine, traffic = parameters / spread.data, spread.gradients
    memory = gpu.memory_bandwidth * rates.memory
    whole = parameters * traffic.step_bytes / memory
    if not spread.offload:
        return whole + mine * traffic.update_bytes / memory
    share = gpu.host_memory_bandwidth / min(gpu.gpus_per_node, spread.num_gpus)
    way = mine * (spread.gradient_bytes * spread.num_micro_batches + 2) / gpu.host_bandwidth
    return whole + way + mine * traffic.update_bytes / (share * rates.memory)


def _waiting(workload: Workload, spread: Spread, computing: float) -> float:
    """Return the seconds that a replica waits for the samples of its next step."""
    reading = spread.micro_batch * spread.num_micro_batches / workload.samples_per_reader
    return max(reading / spread.readers - computing, 0.0) if spread.readers else reading
