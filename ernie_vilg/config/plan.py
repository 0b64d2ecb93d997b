"""Settings of the planner: a pretraining run, the GPUs it is planned for, and what it may cost.

Source: ours.
"""

from dataclasses import dataclass, field

from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_input, check_local_output


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PretrainConfig):
    """The run that is planned, and on what."""

    num_gpus: int
    """GPUs that the run gets."""
    gpu: GpuConfig = field()  # required here
    """Their kind: a file of conf/gpu/, or figures of your own."""
    memory_margin: float = 0.05
    """Share of a GPU's memory that no layout may need: predictions are off by as much, and CUDA and
    NCCL take a few percent that torch does not count."""
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
        check_local_output(plan_dir=self.plan_dir)
        check_local_input(**{f"history[{index}]": run for index, run in enumerate(self.history)})
        for name in ("num_gpus", "num_pairs", "top"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("failures_per_thousand_gpu_days", "restart_minutes"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)}: must not be negative")
        if not 0 <= self.memory_margin < 1:
            raise InputError(
                f"memory_margin={self.memory_margin}: is a share of gpu.memory_bytes, set 0 or "
                "more and less than 1"
            )
        per_node = self.gpu.gpus_per_node
        if self.num_gpus > per_node and self.num_gpus % per_node:
            lower = self.num_gpus // per_node * per_node
            raise InputError(
                f"num_gpus={self.num_gpus} does not fill machines of gpu.gpus_per_node={per_node}: "
                f"set num_gpus={lower} or {lower + per_node}"
            )
