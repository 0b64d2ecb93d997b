"""The only place that reads what a launcher leaves in the environment.

Source: the variables are those of torchrun, which deepspeed sets too, and of Slurm's srun.
"""

import os
from collections.abc import Mapping

from ernie_vilg.config.launch import Launch

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return this process's place among the others; alone if no launcher started it.

    Understands deepspeed and torchrun, and srun. A shell inside an `salloc` or `sbatch` has
    some of Slurm's variables too, but no step: a program typed there is alone.
    """
    if "RANK" in environment:
        names = _TORCHRUN
    elif "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        names = _SRUN
    else:
        return Launch(rank=0, local_rank=0, world_size=1)
    rank, local_rank, world_size = (int(environment[name]) for name in names)
    return Launch(rank=rank, local_rank=local_rank, world_size=world_size)
