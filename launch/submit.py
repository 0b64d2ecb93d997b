"""Print the command that submits a pretraining run to Slurm, or run it.

Every setting is checked here, as the ranks would, before the job waits in a queue: a wrong layout,
missing data or a missing container is a message now. What is missing stops a submission; a command
that is only printed may be for another machine. The last word is Slurm's own.

Exit codes: 0 printed or submitted, 2 a setting is wrong or Slurm refuses the job.
"""

import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ernie_vilg.config.cluster import SlurmConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.submit import SubmitConfig
from ernie_vilg.errors import InputError
from ernie_vilg.planning.history import read_record
from launch.support.program import program

SCRIPT = "launch/slurm/pretrain.sbatch"
_OWN_SETTINGS = {field.name for field in fields(SubmitConfig)} - {
    field.name for field in fields(PretrainConfig)
}

logger = logging.getLogger(__name__)


@program("submit", SubmitConfig)
def main(config: SubmitConfig) -> None:
    """Check every setting, then print or submit the job."""
    slurm = config.cluster.slurm
    if slurm is None:
        raise InputError(
            "cluster.slurm=null: say what to ask Slurm for, add cluster=slurm (or a file of your "
            "own in conf/cluster/ with the key slurm)"
        )
    config.parallelism.num_micro_batches(slurm.world_size)
    missing = what_is_missing(config, slurm)
    if missing and config.submit:
        raise InputError(" ".join(missing))
    warnings = [*missing, time_limit_warning(config, slurm)]
    for warning in filter(None, warnings):
        logger.warning("%s", warning)
    command = sbatch_command(slurm, sys.argv[1:])
    print(submit(command) if config.submit else shlex.join(command))


def sbatch_command(slurm: SlurmConfig, settings: Sequence[str]) -> list[str]:
    """Return the words that submit a run.

    Args:
        slurm: what to ask for.
        settings: the words behind `launch/submit.py`; those of its own are left out.
    """
    named = {"partition": slurm.partition, "account": slurm.account}
    script_options = {
        "container": slurm.container,
        "mounts": ",".join(slurm.container_mounts) or None,
    }
    return [
        "sbatch",
        f"--nodes={slurm.nodes}",
        f"--ntasks-per-node={slurm.ranks_per_node}",
        f"--gpus-per-node={slurm.gpus_per_node}",
        f"--cpus-per-task={slurm.cpus_per_rank}",
        f"--time={slurm.time_limit}",
        f"--signal=USR1@{slurm.warning_seconds}",
        *_options(named),
        *slurm.options,
        SCRIPT,
        *_options(script_options),
        *(word for word in settings if word.lstrip("+").partition("=")[0] not in _OWN_SETTINGS),
    ]


def what_is_missing(config: PretrainConfig, slurm: SlurmConfig) -> list[str]:
    """Return a sentence for each file and folder of this machine that the job would look for.

    A registry's image is not asked for: the nodes may have a log-in that this machine lacks.
    """
    missing = [
        f"{name}={folder} is not a folder: run the program that writes it first, or name another."
        for name, folder in config.missing_folders().items()
    ]
    if slurm.container is not None and slurm.has_image_file and not Path(slurm.container).is_file():
        missing.append(
            f"cluster.slurm.container={slurm.container}: no such file. Make it as docs/cluster.md "
            "says, or set cluster.slurm.container=null to run .venv."
        )
    return missing


def time_limit_warning(config: SubmitConfig, slurm: SlurmConfig) -> str | None:
    """Say so when a job would be ended before its first regular checkpoint.

    It then lives on the one checkpoint that it saves when it is warned.
    """
    try:
        seconds = config.seconds_per_step or measured_seconds_per_step(
            Path(config.run_dir), slurm.world_size
        )
    except InputError as error:  # no reason to refuse a run
        return str(error)
    if seconds is None:
        return None
    interval = config.checkpoint.every * seconds
    usable = slurm.time_limit_seconds - slurm.warning_seconds
    if interval <= usable:
        return None
    return (
        f"cluster.slurm.time_limit={slurm.time_limit} leaves {usable:,} s before the warning, one "
        f"checkpoint interval takes {interval:,.0f} s (checkpoint.every="
        f"{config.checkpoint.every} x {seconds:.3g} s per step): an accident would cost the whole "
        f"job. Raise the former, or set checkpoint.every={max(1, int(usable / seconds))} or below"
    )


def measured_seconds_per_step(run_dir: Path, world_size: int) -> float | None:
    """Return what a run wrote down of its steps; None without it, or with other ranks.

    Raises:
        InputError: it is of another version.
    """
    record = read_record(run_dir)
    if record is None or record.world_size != world_size:
        return None
    return record.seconds_per_step


def submit(command: Sequence[str]) -> str:
    """Submit a job and return what Slurm answers.

    Raises:
        InputError: there is no Slurm, or it refuses the job, in its own words.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InputError(
            "submit=true: there is no sbatch on this machine, submit from a login node of the "
            "cluster, or leave it out to see the command"
        ) from error
    if done.returncode:
        raise InputError(f"Slurm refuses the job:\n{done.stderr.strip()}\n{shlex.join(command)}")
    return done.stdout.strip()


def _options(values: dict[str, str | None]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


if __name__ == "__main__":
    main()
