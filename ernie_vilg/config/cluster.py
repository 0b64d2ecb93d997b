"""Settings of a run's machines and of its Slurm job.

Source: sbatch(1) for the options of `SlurmConfig`.
"""

import re
from dataclasses import dataclass, field

from ernie_vilg.config.schema import NaturalInt, PositiveInt, Settings, Tracked
from ernie_vilg.errors import InputError

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_TIME_LIMIT = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
_OWN_OPTIONS = re.compile(
    r"--(nodes|ntasks-per-node|gpus-per-node|cpus-per-task|time|signal|partition|account)\b"
)
_IMAGE_FILES = (".sif", ".sqsh")


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(Settings, section="cluster.slurm"):
    """Resources of a Slurm job, which `launch/submit.py` writes as options of sbatch."""

    nodes: PositiveInt = 1
    """Number of machines."""
    ranks_per_node: PositiveInt = 8
    """Ranks per machine, one per GPU."""
    gpus_per_node: NaturalInt = 8
    """GPUs per machine; 0 trains on CPU cores."""
    cpus_per_rank: PositiveInt = 8
    """CPU cores per rank, most of them for data workers."""
    time_limit: str = "1-00:00:00"
    """Time limit of the job, HH:MM:SS or D-HH:MM:SS."""
    warning_seconds: PositiveInt = 180
    """Seconds before the time limit at which ranks are asked to save. Longer than a step and a
    checkpoint; Slurm rounds to about a minute."""
    partition: str | None = None
    """Partition of the cluster; null leaves the choice to Slurm."""
    account: str | None = None
    """Account that is charged; null leaves the choice to Slurm."""
    container: str | None = None
    """Container image: a .sif file runs under Apptainer; a .sqsh file or a registry's image under
    pyxis and enroot; null runs the .venv of this folder."""
    container_mounts: tuple[str, ...] = ()
    """Folders to mount in the container, such as the data's, besides this one."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, such as --qos=high."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus_per_node not in (0, self.ranks_per_node):
            raise InputError(
                f"cluster.slurm.gpus_per_node={self.gpus_per_node} with cluster.slurm."
                f"ranks_per_node={self.ranks_per_node}: every rank drives one GPU, set both to the "
                "same number, or the former to 0 to train on cores"
            )
        if not _TIME_LIMIT.fullmatch(self.time_limit):
            raise InputError(
                f"cluster.slurm.time_limit={self.time_limit}: write HH:MM:SS or D-HH:MM:SS, such "
                "as 1-00:00:00 for a day"
            )
        if self.warning_seconds >= self.time_limit_seconds:
            raise InputError(
                f"cluster.slurm.warning_seconds={self.warning_seconds} is not below cluster.slurm."
                f"time_limit={self.time_limit}: the job would be asked to stop when it starts"
            )
        for option in self.options:
            if not option.startswith("-") or _OWN_OPTIONS.match(option):
                raise InputError(
                    f"cluster.slurm.options: {option!r} must be an option of sbatch, such as "
                    "--qos=high, and none that has a setting of its own in cluster.slurm"
                )

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return self.nodes * self.ranks_per_node

    @property
    def time_limit_seconds(self) -> int:
        """Time limit in seconds."""
        match = _TIME_LIMIT.fullmatch(self.time_limit)
        assert match is not None  # checked by __post_init__
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def has_image_file(self) -> bool:
        """Whether the container is a file, rather than a registry's image."""
        return self.container is not None and self.container.endswith(_IMAGE_FILES)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Settings, section="cluster"):
    """Machines of a run."""

    collective_timeout_seconds: Tracked[PositiveInt] = 300
    """Timeout of collectives. torch's defaults are 10 minutes for NCCL and half an hour for gloo,
    during which a dead run still costs."""
    rendezvous_timeout_seconds: Tracked[PositiveInt] = 120
    """Timeout of the ranks' rendezvous at the start."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables that ranks set before torch is loaded, such as NCCL's, unless the
    launcher has set them. $USER in a value stands for the name of the user. The run folder records
    them: put no secrets here."""
    slurm: SlurmConfig | None = None
    """Slurm job of `launch/submit.py`; null without Slurm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise InputError(
                    f"cluster.environment.{name}: write the variable's name in capital letters, "
                    "such as NCCL_DEBUG"
                )
