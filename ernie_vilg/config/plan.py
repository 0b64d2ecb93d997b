"""Settings of the planner: a pretraining run, its GPUs, and the assumptions of its cost."""

from dataclasses import dataclass, field

from ernie_vilg.config.gpu import GpuConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import (
    FractionBelowOne,
    LocalInput,
    LocalOutput,
    NaturalFloat,
    PositiveInt,
)
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PretrainConfig):
    """Settings of launch/plan.py."""

    num_gpus: PositiveInt
    """Number of GPUs."""
    gpu: GpuConfig = field()  # required here
    """GPU model: a file of conf/gpu/, or figures of your own."""
    memory_margin: FractionBelowOne = 0.05
    """Fraction of a GPU's memory that a layout must leave free, for errors of the prediction and
    for the few percent of CUDA and NCCL that torch does not count."""
    num_pairs: PositiveInt | None = None
    """Number of pairs that the whole run trains on, each as often as it is drawn, for hours and
    cost; null takes those of training.steps."""
    num_data_pairs: PositiveInt | None = None
    """Number of pairs that the data has, for epochs; null takes the manifests of the token shards,
    or data.expected_pairs while there are none."""
    failures_per_thousand_gpu_days: NaturalFloat = 1.0
    """Failures of the whole job. Good hardware has 1, bad 3 (Meta RSC-1, all causes)."""
    restart_minutes: NaturalFloat = 10.0
    """Minutes from a failure to the next step, without the work since the last checkpoint."""
    history: tuple[LocalInput, ...] = ()
    """Run folders whose measurements correct the plan."""
    apply: bool = False
    """Whether to print only the best layout's settings, to paste into a command line."""
    top: PositiveInt = 10
    """Number of layouts to print."""
    plan_dir: LocalOutput = "outputs/plan"
    """Folder for plan.json and plan.png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        per_node = self.gpu.gpus_per_node
        if self.num_gpus > per_node and self.num_gpus % per_node:
            lower = self.num_gpus // per_node * per_node
            raise InputError(
                f"num_gpus={self.num_gpus} does not fill machines of gpu.gpus_per_node={per_node}: "
                f"set num_gpus={lower} or {lower + per_node}"
            )
