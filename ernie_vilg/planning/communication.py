"""Seconds of communication, for ring collectives over two kinds of wire.

Source: the costs of ring collectives (Patarasuk and Yuan 2009); constants are ours.
"""

from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.planning.workload import Spread, Workload

LATENCY_SECONDS = 20.0e-6
"""Latency of one collective within a machine, its launch included."""
NETWORK_LATENCY_SECONDS = 5.0e-6
"""Extra latency per additional machine in a ring."""
WIRE_EFFICIENCY = 0.8
"""Fraction of a wire's rate that large messages reach."""


def tensor_seconds(workload: Workload, spread: Spread, gpu: GpuConfig) -> float:
    """Return the seconds of one block's collectives in the forward pass of one micro-batch.

    A block has two all-reduces over the tensor ranks. Sequence parallelism replaces each with a
    reduce-scatter and an all-gather, which move as many bytes. The backward pass takes as long
    again. Nothing is overlapped.
    """
    if spread.tensor == 1:
        return 0.0
    message = 2.0 * spread.micro_batch * workload.tokens * workload.hidden_size
    moved = 2 * (spread.tensor - 1) / spread.tensor * message
    bandwidth = WIRE_EFFICIENCY * wire(spread.tensor, gpu)
    return 2 * (LATENCY_SECONDS + moved / bandwidth)


def send_seconds(workload: Workload, spread: Spread, gpu: GpuConfig) -> float:
    """Return the seconds of sending one micro-batch to the next stage and its gradient back."""
    if spread.pipeline == 1:
        return 0.0
    message = 2.0 * spread.micro_batch * workload.tokens * workload.hidden_size
    share = spread.tensor if spread.sequence_parallel else 1
    stays = spread.num_gpus <= gpu.gpus_per_node  # stages are the outermost axis of the ranks
    bandwidth = gpu.node_bandwidth if stays else gpu.network_bandwidth
    return 2 * (LATENCY_SECONDS + message / share / (WIRE_EFFICIENCY * bandwidth))


def replica_seconds(num_bytes: float, spread: Spread, gpu: GpuConfig) -> float:
    """Return the seconds of an all-gather or a reduce-scatter among replicas.

    Args:
        num_bytes: bytes of the whole tensor, before the reduce-scatter or after the all-gather.
        spread: layout of the workload.
        gpu: kind of GPU, with its wires.
    """
    if spread.data == 1:
        return 0.0
    bandwidth = WIRE_EFFICIENCY * wire(spread.data, gpu, stride=spread.tensor)
    machines = spread.data * spread.tensor / gpu.gpus_per_node
    latency = LATENCY_SECONDS + NETWORK_LATENCY_SECONDS * max(machines - 1, 0)
    return latency + num_bytes * (spread.data - 1) / spread.data / bandwidth


def wire(num_ranks: int, gpu: GpuConfig, stride: int = 1) -> float:
    """Return the rate at which data passes each rank of a ring, in bytes per second.

    Between machines, the ranks of a ring on one machine send over one port each.

    Args:
        num_ranks: number of ranks of the group.
        gpu: kind of GPU, with its wires.
        stride: distance of neighbouring ranks of the group.
    """
    if num_ranks * stride <= gpu.gpus_per_node:
        return gpu.node_bandwidth
    num_ports = max(gpu.gpus_per_node // stride, 1)
    return min(num_ports * gpu.network_bandwidth, gpu.node_bandwidth)
