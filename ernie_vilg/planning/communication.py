"""Seconds that ranks spend on sending, by ring collectives over two kinds of wire.

Source: the costs of ring collectives (Patarasuk and Yuan 2009); constants are ours.
"""

from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.planning.workload import Spread, Workload

LATENCY_SECONDS = 20.0e-6
"""Of one collective within a machine, its launch included."""
NETWORK_LATENCY_SECONDS = 5.0e-6
"""That each further machine of a ring adds."""
WIRE_EFFICIENCY = 0.8
"""Share of a wire's rate that large messages reach."""


def tensor_seconds(workload: Workload, spread: Spread, gpu: GpuConfig) -> float:
    """Return the seconds of one block's collectives, forward, of one micro-batch.

    Two sums over the tensor ranks; with sequence parallelism a scatter and a gather each, which
    move as much. The backward pass has the same again. Nothing is overlapped.
    """
    if spread.tensor == 1:
        return 0.0
    message = 2.0 * spread.micro_batch * workload.tokens * workload.hidden_size
    moved = 2 * (spread.tensor - 1) / spread.tensor * message
    bandwidth = WIRE_EFFICIENCY * wire(spread.tensor, gpu)
    return 2 * (LATENCY_SECONDS + moved / bandwidth)


def send_seconds(workload: Workload, spread: Spread, gpu: GpuConfig) -> float:
    """Return the seconds of handing one micro-batch on and its gradient back."""
    if spread.pipeline == 1:
        return 0.0
    message = 2.0 * spread.micro_batch * workload.tokens * workload.hidden_size
    share = spread.tensor if spread.sequence_parallel else 1
    stays = spread.tensor * spread.pipeline <= gpu.gpus_per_node
    bandwidth = gpu.node_bandwidth if stays else gpu.network_bandwidth
    return 2 * (LATENCY_SECONDS + message / share / (WIRE_EFFICIENCY * bandwidth))


def replica_seconds(num_bytes: float, spread: Spread, gpu: GpuConfig) -> float:
    """Return the seconds of a gather, or of a scattered sum, among replicas.

    Args:
        num_bytes: of the whole tensor that each replica ends up with, or starts from.
        spread: of the work.
        gpu: its wires.
    """
    if spread.data == 1:
        return 0.0
    bandwidth = WIRE_EFFICIENCY * wire(spread.num_gpus, gpu)
    machines = spread.num_gpus / gpu.gpus_per_node
    latency = LATENCY_SECONDS + NETWORK_LATENCY_SECONDS * max(machines - 1, 0)
    return latency + num_bytes * (spread.data - 1) / spread.data / bandwidth


def wire(num_ranks: int, gpu: GpuConfig) -> float:
    """Return the rate of the slowest wire among neighbouring ranks, in bytes per second."""
    return gpu.node_bandwidth if num_ranks <= gpu.gpus_per_node else gpu.network_bandwidth
