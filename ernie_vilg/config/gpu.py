"""Figures of a GPU model, as in conf/gpu/."""

from dataclasses import dataclass
from typing import Annotated

from ernie_vilg.config.schema import PositiveFloat, PositiveInt, Range, Settings


@dataclass(frozen=True, kw_only=True)
class GpuConfig(Settings, section="gpu"):
    """A GPU model and its machines. conf/gpu/ has the sources of the figures."""

    name: str
    """Name of the device in torch, by which measured runs are found."""
    memory_bytes: PositiveFloat
    """Memory of a GPU."""
    peak_flops: PositiveFloat
    """Dense 16-bit FLOP/s, datasheet."""
    matrix_efficiency: Annotated[float, Range(above=0, at_most=1)]
    """Fraction of `peak_flops` that large matrix products reach."""
    memory_bandwidth: PositiveFloat
    """Bandwidth of the GPU's memory, bytes per second, datasheet."""
    bfloat16: bool = True
    """Whether the GPU computes in bfloat16; otherwise runs are planned in float16."""
    float8: bool = False
    """Whether the GPU multiplies 8-bit floats, at twice `peak_flops`."""
    gpus_per_node: PositiveInt = 8
    """Number of GPUs per machine."""
    node_bandwidth: PositiveFloat
    """Bandwidth between a GPU and the others of its machine, bytes per second and direction."""
    network_bandwidth: PositiveFloat
    """Bandwidth between a GPU and other machines, bytes per second and direction."""
    host_bandwidth: PositiveFloat
    """Bandwidth between a GPU and host memory, bytes per second and direction."""
    host_memory_bytes: PositiveFloat
    """Host memory of a machine."""
    host_memory_bandwidth: PositiveFloat
    """Bandwidth of a machine's host memory, bytes per second, all GPUs together."""
    storage_bandwidth: PositiveFloat = 1.2e9
    """Bandwidth of a machine's writes to shared storage, bytes per second."""
    dollars_per_hour: PositiveFloat
    """Rent of a GPU."""
