"""Settings of the planner: a pretraining run, the GPUs it is planned for, and what it may cost.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.config.pretrain import PretrainConfig


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
                raise ValueError(f"gpu.{name}={value}: must be above 0")
        if self.matrix_efficiency > 1:
            raise ValueError(
                f"gpu.matrix_efficiency={self.matrix_efficiency}: is a share of gpu.peak_flops, "
                "set it to at most 1"
            )


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PretrainConfig):
    """The run that is planned, and on what."""

    num_gpus: int
    """GPUs that the run gets."""
    gpu: GpuConfig
    """Their kind: a file of conf/gpu/, or figures of your own."""
    num_pairs: int = 145_000_000
    """Pairs of the whole run, for hours and cost."""
    failures_per_thousand_gpu_days: float = 1.0
    """Stops of the whole job. Good hardware has 1, bad 3 (Meta RSC-1, all causes)."""
    restart_minutes: float = 10.0
    """From a stop to the next step, the work lost since the last checkpoint apart."""
    history: tuple[str, ...] = ()
    """Folders of runs whose measurements correct the plan."""
    apply: bool = False
    """Print the best layout's settings alone, to paste into a command line."""
    top: int = 10
    """Layouts to show."""
    plan_dir: str = "outputs/plan"
    """Folder to write: plan.json and plan.png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_gpus", "num_pairs", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("failures_per_thousand_gpu_days", "restart_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        per_node = self.gpu.gpus_per_node
        if self.num_gpus > per_node and self.num_gpus % per_node:
            lower = self.num_gpus // per_node * per_node
            raise ValueError(
                f"num_gpus={self.num_gpus} does not fill machines of gpu.gpus_per_node={per_node}: "
                f"set num_gpus={lower} or {lower + per_node}"
            )
