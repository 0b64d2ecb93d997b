"""One kind of GPU, as conf/gpu/ describes it.

Source: ours.
"""

from dataclasses import dataclass
from typing import Annotated

from ernie_vilg.config.schema import PositiveFloat, PositiveInt, Range, Settings


@dataclass(frozen=True, kw_only=True)
class GpuConfig(Settings, section="gpu"):
    """One kind of GPU and the machines it stands in. conf/gpu/ has the sources of the figures."""

    name: str
    """As torch names the device, so that measured runs of it are found."""
    memory_bytes: PositiveFloat
    """Of one GPU."""
    peak_flops: PositiveFloat
    """Dense 16-bit FLOP/s of the datasheet."""
    matrix_efficiency: Annotated[float, Range(above=0, at_most=1)]
    """Share of `peak_flops` that large matrix products reach."""
    memory_bandwidth: PositiveFloat
    """Bytes per second of the GPU's own memory, datasheet."""
    bfloat16: bool = True
    """Whether it computes in bfloat16; without, runs are planned in float16."""
    gpus_per_node: PositiveInt = 8
    """GPUs of one machine."""
    node_bandwidth: PositiveFloat
    """Bytes per second and direction between one GPU and the others of its machine."""
    network_bandwidth: PositiveFloat
    """Bytes per second and direction between one GPU and other machines."""
    host_bandwidth: PositiveFloat
    """Bytes per second and direction between one GPU and host memory."""
    host_memory_bytes: PositiveFloat
    """Of one machine."""
    host_memory_bandwidth: PositiveFloat
    """Bytes per second of one machine's host memory, all its GPUs together."""
    storage_bandwidth: PositiveFloat = 1.2e9
    """Bytes per second that one machine writes to shared storage."""
    dollars_per_hour: PositiveFloat
    """Rent of one GPU."""
