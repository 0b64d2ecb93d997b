"""The machines that a run is on, and what to ask Slurm for.

Source: ours; the words of `SlurmConfig` are those of sbatch(1).
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
    """What a job asks Slurm for; `launch/submit.py` writes it as words of sbatch."""

    nodes: PositiveInt = 1
    """Machines."""
    ranks_per_node: PositiveInt = 8
    """Tasks per machine: one per GPU."""
    gpus_per_node: NaturalInt = 8
    """GPUs per machine; 0 asks for none and trains on cores."""
    cpus_per_rank: PositiveInt = 8
    """Cores per rank, of which the data workers need most."""
    time_limit: str = "1-00:00:00"
    """Hours:minutes:seconds, with days and a dash before them if need be, after which Slurm ends
    the job."""
    warning_seconds: PositiveInt = 180
    """Before the time limit at which ranks are told to save. Longer than a step and a checkpoint;
    Slurm rounds to about a minute."""
    partition: str | None = None
    """Of the cluster; null leaves the choice to Slurm."""
    account: str | None = None
    """That pays; null leaves the choice to Slurm."""
    container: str | None = None
    """A .sif file runs under Apptainer; a .sqsh file or a registry's image under pyxis and enroot;
    null runs the .venv of this folder."""
    container_mounts: tuple[str, ...] = ()
    """Further folders that the container sees, such as the data's; this one it always sees."""
    options: tuple[str, ...] = ()
    """Further words of sbatch, such as --qos=high."""

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
                f"time_limit={self.time_limit}: the job would be told to stop when it starts"
            )
        for word in self.options:
            if not word.startswith("-") or _OWN_OPTIONS.match(word):
                raise InputError(
                    f"cluster.slurm.options: {word!r} must be a whole word of sbatch, such as "
                    "--qos=high, and none that has a setting of its own in cluster.slurm"
                )

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.ranks_per_node

    @property
    def time_limit_seconds(self) -> int:
        """The time limit as one number."""
        match = _TIME_LIMIT.fullmatch(self.time_limit)
        assert match is not None  # checked when this was made
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def has_image_file(self) -> bool:
        """Whether the container is a file, rather than an image of a registry."""
        return self.container is not None and self.container.endswith(_IMAGE_FILES)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Settings, section="cluster"):
    """The machines that a run is on."""

    collective_timeout_seconds: Tracked[PositiveInt] = 300
    """How long a rank waits for the others before it gives up. torch's defaults are
    10 minutes for NCCL and half an hour for gloo, in which a dead run still costs."""
    rendezvous_timeout_seconds: Tracked[PositiveInt] = 120
    """How long the ranks wait for each other at the start."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that ranks set for themselves before torch is loaded, such as NCCL's; what the
    launcher has set already stands. Written into the run folder: no place for secrets."""
    slurm: SlurmConfig | None = None
    """What `launch/submit.py` asks Slurm for; null: there is no Slurm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise InputError(
                    f"cluster.environment.{name}: write the variable's name in capital letters, "
                    "such as NCCL_DEBUG"
                )
