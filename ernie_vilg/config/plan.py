"""Settings of the planner: a pretraining run, the GPUs it is planned for, and what it may cost.

Source: ours.
"""

from dataclasses import dataclass, field

from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import (
    LocalInput,
    LocalOutput,
    NaturalFloat,
    PositiveInt,
    ShareBelowOne,
)
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PretrainConfig):
    """The run that is planned, and on what."""

    num_gpus: PositiveInt
    """GPUs that the run gets."""
    gpu: GpuConfig = field()  # required here
    """Their kind: a file of conf/gpu/, or figures of your own."""
    memory_margin: ShareBelowOne = 0.05
    """Share of a GPU's memory that no layout may need: predictions are off by as much, and CUDA and
    NCCL take a few percent that torch does not count."""
    num_pairs: PositiveInt = 145_000_000
    """Pairs of the whole run, for hours and cost."""
    failures_per_thousand_gpu_days: NaturalFloat = 1.0
    """Stops of the whole job. Good hardware has 1, bad 3 (Meta RSC-1, all causes)."""
    restart_minutes: NaturalFloat = 10.0
    """From a stop to the next step, the work lost since the last checkpoint apart."""
    history: tuple[LocalInput, ...] = ()
    """Folders of runs whose measurements correct the plan."""
    apply: bool = False
    """Print the best layout's settings alone, to paste into a command line."""
    top: PositiveInt = 10
    """Layouts to show."""
    plan_dir: LocalOutput = "outputs/plan"
    """Folder to write: plan.json and plan.png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        per_node = self.gpu.gpus_per_node
        if self.num_gpus > per_node and self.num_gpus % per_node:
            lower = self.num_gpus // per_node * per_node
            raise InputError(
                f"num_gpus={self.num_gpus} does not fill machines of gpu.gpus_per_node={per_node}: "
                f"set num_gpus={lower} or {lower + per_node}"
            )
