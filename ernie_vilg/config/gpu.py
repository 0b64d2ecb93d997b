"""One kind of GPU, as conf/gpu/ describes it.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """One kind of GPU and the machines it stands in. conf/gpu/ has the sources of the figures."""

    name: str
    """As torch names the device, so that measured runs of it are found."""
    memory_bytes: float
    """Of one GPU."""
    peak_flops: float
    """Dense 16-bit FLOP/s of the datasheet."""
    matrix_efficiency: float
    """Share of `peak_flops` that large matrix products reach."""
    memory_bandwidth: float
    """Bytes per second of the GPU's own memory, datasheet."""
    bfloat16: bool = True
    """Whether it computes in bfloat16; without, runs are planned in float16."""
    gpus_per_node: int = 8
    """GPUs of one machine."""
    node_bandwidth: float
    """Bytes per second and direction between one GPU and the others of its machine."""
    network_bandwidth: float
    """Bytes per second and direction between one GPU and other machines."""
    host_bandwidth: float
    """Bytes per second and direction between one GPU and host memory."""
    host_memory_bytes: float
    """Of one machine."""
    host_memory_bandwidth: float
    """Bytes per second of one machine's host memory, all its GPUs together."""
    storage_bandwidth: float = 1.2e9
    """Bytes per second that one machine writes to shared storage."""
    dollars_per_hour: float
    """Rent of one GPU."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise InputError(f"gpu.{name}={value}: must be above 0")
        if self.matrix_efficiency > 1:
            raise InputError(
                f"gpu.matrix_efficiency={self.matrix_efficiency}: is a share of gpu.peak_flops, "
                "set it to at most 1"
            )
