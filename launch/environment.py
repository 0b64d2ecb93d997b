"""The only place that reads what a launcher leaves in the environment, and adds to it.

Source: the variables are those of torchrun, which deepspeed sets too, and of Slurm's srun.
"""

import os
from collections.abc import Mapping, MutableMapping

from ernie_vilg.config.launch import Launch
from ernie_vilg.errors import InputError

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_LAUNCHERS_OWN = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
"""Variables that torchrun and deepspeed set, and that nobody sets by hand."""
_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return this process's place among the others; alone if no launcher started it.

    Understands deepspeed and torchrun, and srun. A shell inside an `salloc` or `sbatch` has
    some of Slurm's variables too, but no step: a program typed there is alone.
    """
    names = _place_variables(environment)
    rank, local_rank, world_size = (
        (0, 0, 1) if names is None else (int(environment[name]) for name in names)
    )
    return Launch(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        job=environment.get("SLURM_JOB_ID"),
        job_restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        ending_file=environment.get("ENDING_FILE"),
    )


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether a launcher started this process, rather than a person."""
    return _place_variables(environment) is not None


def require_one_process(
    program: str, launch: Launch, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse that torchrun or deepspeed starts several processes of a program that needs one.

    A world size alone says nothing: it may be left over from another program of the shell.

    Raises:
        InputError: it does.
    """
    if launch.world_size > 1 and any(name in environment for name in _LAUNCHERS_OWN):
        raise InputError(
            f"launch/{program}.py is one process, and a launcher started {launch.world_size} of "
            "it: start it with python alone"
        )


def add_variables(
    variables: Mapping[str, str], environment: MutableMapping[str, str] = os.environ
) -> None:
    """Set variables for this process and those it starts; what is set already stands.

    Call it before torch is loaded: libraries below it read theirs when they are loaded, or first
    used.
    """
    for name, value in variables.items():
        environment.setdefault(name, value)


def _place_variables(environment: Mapping[str, str]) -> tuple[str, str, str] | None:
    if "RANK" in environment:
        return _TORCHRUN
    if "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        return _SRUN
    return None
