"""Print the command that submits a pretraining run to Slurm, or run it.

It checks every setting as the ranks would, so a wrong layout, missing data or a missing container
is reported before the job waits in a queue. Missing files stop a submission, but not a command that
is only printed, since it may be for another machine. Slurm itself may still refuse the job.

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
            "cluster.slurm=null: add cluster=slurm, or a file of your own in conf/cluster/ with "
            "the key slurm"
        )
    config.parallelism.num_micro_batches(slurm.world_size)
    missing = missing_files(config, slurm)
    if missing and config.submit:
        raise InputError(" ".join(missing))
    warnings = [*missing, time_limit_warning(config, slurm)]
    for warning in filter(None, warnings):
        logger.warning("%s", warning)
    command = sbatch_command(slurm, sys.argv[1:])
    print(submit(command) if config.submit else shlex.join(command))


def sbatch_command(slurm: SlurmConfig, settings: Sequence[str]) -> list[str]:
    """Return the command that submits a run.

    Args:
        slurm: Slurm options.
        settings: options of `launch/submit.py`; without those that only it has.
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
        *(each for each in settings if each.lstrip("+").partition("=")[0] not in _OWN_SETTINGS),
    ]


def missing_files(config: PretrainConfig, slurm: SlurmConfig) -> list[str]:
    """Return a sentence for each file and folder that the job reads and this machine lacks.

    A registry's image is not looked up: the nodes may have a login that this machine lacks.
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
    """Return a warning if the time limit ends a job before its first regular checkpoint.

    The job then has only the checkpoint that it saves on the warning signal.
    """
    try:
        seconds = config.seconds_per_step or measured_seconds_per_step(
            Path(config.run_dir), slurm.world_size
        )
    except InputError as error:  # not a reason to refuse the run
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
        f"{config.checkpoint.every} x {seconds:.3g} s per step): a failure would cost the whole "
        f"job. Raise the former, or set checkpoint.every={max(1, int(usable / seconds))} or below"
    )


def measured_seconds_per_step(run_dir: Path, world_size: int) -> float | None:
    """Return the recorded seconds per step of a run; None without a record of as many ranks.

    Raises:
        InputError: the record is of another version.
    """
    record = read_record(run_dir)
    if record is None or record.world_size != world_size:
        return None
    return record.seconds_per_step


def submit(command: Sequence[str]) -> str:
    """Submit a job and return Slurm's answer.

    Raises:
        InputError: this folder has no batch script, this machine has no Slurm, or Slurm refuses the
            job; with Slurm's message.
    """
    if not Path(SCRIPT).is_file():
        raise InputError(
            f"submit=true: {Path.cwd()} has no {SCRIPT}, whose job runs the code of this folder: "
            "start it in a checkout of the repository, or leave it out to print the command"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InputError(
            "submit=true: there is no sbatch on this machine, submit from a login node of the "
            "cluster, or leave it out to print the command"
        ) from error
    if done.returncode:
        raise InputError(f"Slurm refuses the job:\n{done.stderr.strip()}\n{shlex.join(command)}")
    return done.stdout.strip()


def _options(values: dict[str, str | None]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


if __name__ == "__main__":
    main()
