"""Submits the jobs of a sweep by submitit: to Slurm, or as processes of this machine.

The settings are those of Hydra's plugin for submitit (`hydra/launcher=submitit_slurm` and
`hydra.launcher.KEY=VALUE`), but what submitit starts is the program without --multirun, as any
launcher starts it: one process for each task of the job, which gets its rank and the address of the
rendezvous, and every signal. So a job saves, requeues itself and resumes as it does from sbatch.

Source: submitit 1.5 and hydra-submitit-launcher 1.2
(https://hydra.cc/docs/plugins/submitit_launcher).
"""

import importlib
import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_pipelines.curation.extras import import_extra
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.json_files import read_json
from launch.support.composition import compose_program
from launch.support.environment import child_environment
from launch.support.process_tree import stop_with_parent
from launch.support.sweep import Job
from launch.support.sweep_run import NOT_STARTED, SIGNALS, SUBMITTED, Sweep, ending_in_words

LOGS_NAME = ".submitit"
"""Folder of a sweep for submitit's files: the log of every rank, and its records of jobs."""
_GROUP = "hydra/launcher"
_PREFIX = "hydra.launcher."
_QUEUES = {
    "submitit_slurm": ("slurm", "SlurmQueueConf"),
    "submitit_local": ("local", "LocalQueueConf"),
}
"""Executor of submitit, and the plugin's dataclass of its settings, by choice of the group."""
_NOT_OURS = ("_target_", "submitit_folder", "max_num_timeout")
"""Settings of the plugin that the sweep decides: a run requeues itself, as often as it must."""
_KILLED, _LOST = "killed", "gone before it began"
"""Endings of jobs that left no record: Slurm ended them."""
_POLL_SECONDS = 1.0
_QUEUE_SECONDS = 5.0
"""Interval of questions to Slurm's controller."""
_ORDERLY = (ExitCode.DONE, ExitCode.BAD_SETTINGS, ExitCode.STOPPED)
"""Exit codes that all ranks of a run agree on."""
_REQUEUE_SECONDS = 60
"""Time in which Slurm ends a job that has requeued itself."""
_FIRST_PORT, _NUM_PORTS = 20_000, 12_000
"""Ports of rendezvous, below the kernel's ephemeral ones, as in launch/slurm/job.sh."""

logger = logging.getLogger(__name__)


def is_queue_option(option: str) -> bool:
    """Return whether an option of a sweep's command line is about where its jobs run."""
    key = option.partition("=")[0]
    return key == _GROUP or key.startswith(_PREFIX)


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Where jobs run, and with what."""

    executor: str
    """Submitit's name of it: slurm or local."""
    settings: Mapping[str, Any]
    """Settings of the plugin by name."""

    @property
    def num_ranks(self) -> int:
        """Number of processes of each job."""
        return int(self.settings["nodes"] * self.settings["tasks_per_node"])


def queue_of(options: Sequence[str], program: str) -> Queue:
    """Return where the jobs of a sweep run.

    Args:
        options: the sweep's options for which `is_queue_option` holds.
        program: name of the program, for the name of the jobs.

    Raises:
        InputError: an option is unknown or of a wrong kind, a package is missing, or there is no
            Slurm here.
    """
    groups = [option.partition("=")[2] for option in options if option.startswith(f"{_GROUP}=")]
    if len(groups) != 1 or groups[0] not in _QUEUES:
        raise InputError(
            f"{' '.join(options)}: name one of {_GROUP}={' or '.join(_QUEUES)}, with settings as "
            f"in {_PREFIX}timeout_min=600, or leave them all out to run the jobs here, one by one"
        )
    executor, dataclass_name = _QUEUES[groups[0]]
    _require_packages(executor, f"{_GROUP}={groups[0]}")
    plugin = importlib.import_module("hydra_plugins.hydra_submitit_launcher.config")
    settings = OmegaConf.structured(getattr(plugin, dataclass_name))
    for option in options:
        if option.startswith(_PREFIX):
            _set(settings, option)
    found: Any = OmegaConf.to_container(settings, resolve=False)
    if "${" in found["name"]:  # the plugin's default, which refers to Hydra's own settings
        found["name"] = program
    queue = Queue(
        executor=executor,
        settings={name: value for name, value in found.items() if name not in _NOT_OURS},
    )
    nodes, tasks = queue.settings["nodes"], queue.settings["tasks_per_node"]
    if min(nodes, tasks) < 1 or (executor == "local" and nodes > 1):
        raise InputError(
            f"{' '.join(options)}: nodes and tasks_per_node are at least 1, and nodes is 1 with "
            "submitit_local, which is this machine"
        )
    return queue


def _require_packages(executor: str, chosen: str) -> None:
    for module in ("submitit", "hydra_plugins.hydra_submitit_launcher"):
        import_extra(module, extra="submitit", setting=chosen)
    if executor == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError(
            f"{chosen}: no sbatch and srun here: start the sweep on a machine that submits Slurm's "
            "jobs, or leave the launcher out"
        )


def _set(settings: Any, option: str) -> None:
    """Set one setting of a queue from its option, in place."""
    name = option.partition("=")[0].removeprefix(_PREFIX)
    known = [key for key in settings if key not in _NOT_OURS]
    if name.partition(".")[0] not in known:
        raise InputError(f"{option}: no such setting: there are {', '.join(known)}")
    try:
        parsed = OverridesParser.create().parse_override(option)
        if parsed.is_sweep_override():
            raise InputError(f"{option}: one value belongs here, all jobs get the same")
        OmegaConf.update(settings, name, parsed.value(), force_add=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"{option}: {str(error).splitlines()[0]}") from error


class SubmittedSweep(Sweep):
    """A sweep whose jobs run at the same time, where and when Slurm decides."""

    def __init__(
        self, command: Sequence[str], folder: Path, jobs: Sequence[Job], queue: Queue
    ) -> None:
        """Take what will run.

        Args:
            command: command of the program, without settings.
            folder: folder of the sweep.
            jobs: its jobs in their order.
            queue: where they run.
        """
        super().__init__(command, folder, jobs)
        self._queue = queue
        self._is_cancelled = False

    def run(self) -> ExitCode:
        """Submit all jobs and wait for them; return the exit code.

        Raises:
            InputError: Slurm refuses them.
        """
        for number in SIGNALS:
            signal.signal(number, self._pass_on)
        open_jobs = self._submit()
        self._endings = dict.fromkeys(open_jobs, SUBMITTED)
        self._write()
        next_question = 0.0
        while open_jobs:
            if self._signal_number is not None and not self._is_cancelled:
                self._cancel(open_jobs.values())
            if time.monotonic() >= next_question or self._queue.executor == "local":
                next_question = time.monotonic() + _QUEUE_SECONDS
                self._take_ended(open_jobs)
            time.sleep(_POLL_SECONDS if open_jobs else 0)
        return self._finish()

    def _submit(self) -> dict[str, Any]:
        """Return the submitted jobs by name."""
        import submitit

        executor = submitit.AutoExecutor(
            folder=self._folder / LOGS_NAME / "%j", cluster=self._queue.executor
        )
        executor.update_parameters(**_parameters(self._queue))
        commands = [tuple(self._command_of(job)) for job in self._jobs]
        folders = [str(self._folder / job.name) for job in self._jobs]
        try:
            submitted = executor.map_array(run_rank, commands, folders)
        except submitit.core.utils.FailedJobError as error:
            raise InputError(f"Slurm refuses the jobs of this sweep: {error}") from error
        found = {job.name: each for job, each in zip(self._jobs, submitted, strict=True)}
        for name, each in found.items():
            logger.info("%s is job %s, logs in %s", name, each.job_id, each.paths.folder)
        return found

    def _take_ended(self, open_jobs: dict[str, Any]) -> None:
        """Remove the jobs that have ended, in place, and note how."""
        queued = None if self._queue.executor == "local" else _queued_in_slurm()
        for name, job in list(open_jobs.items()):
            is_gone = job.done() if queued is None else job.job_id not in queued
            if is_gone:
                del open_jobs[name]
                self._endings[name] = self._ending_of(job)
                logger.info("%s (job %s): %s", name, job.job_id, self._endings[name])
                self._write()

    def _ending_of(self, job: Any) -> str:
        ranks = [job.task(index) for index in range(job.num_tasks)]
        codes = [_code_of(rank) for rank in ranks if rank.paths.result_pickle.exists()]
        # The rank that was refused or stopped says why; others may have been ended with it.
        for decisive in (ExitCode.BAD_SETTINGS, ExitCode.STOPPED):
            if decisive in codes:
                return ending_in_words(decisive)
        failed = [code for code in codes if code]
        if failed or len(codes) == len(ranks):
            return ending_in_words(failed[0] if failed else ExitCode.DONE)
        if ranks[0].paths.stdout.exists():
            return _KILLED
        return NOT_STARTED if self._is_cancelled else _LOST

    def _cancel(self, jobs: Collection[Any]) -> None:
        """Ask the jobs to stop: those that run save first, and the others do not start."""
        self._is_cancelled = True
        logger.info("stopping %d jobs", len(jobs))
        for job in jobs:
            if self._queue.executor == "slurm":
                job.cancel(check=False)
            elif not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's own way leaves a second

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal_number = number


def check_ranks(program: str, jobs: Sequence[Job], num_ranks: int) -> None:
    """Check that every job's batch divides among its ranks.

    Raises:
        InputError: it does not; the message names the settings.
    """
    for job in jobs:
        config = compose_program(program, job.options)
        if hasattr(config, "parallelism"):
            config.parallelism.num_micro_batches(num_ranks)
        else:
            config.micro_batch_size(num_ranks)


def _parameters(queue: Queue) -> dict[str, Any]:
    """Return a queue's settings as submitit names them."""
    plugin = importlib.import_module("hydra_plugins.hydra_submitit_launcher.config")
    shared = OmegaConf.structured(plugin.BaseQueueConf).keys()
    found = {
        name if name in shared else f"{queue.executor}_{name}": value
        for name, value in queue.settings.items()
    }
    if queue.executor == "slurm":
        # A preempted job comes back and resumes; a person may say otherwise.
        found["slurm_additional_parameters"] = {
            "requeue": True,
            **found["slurm_additional_parameters"],
        }
        found["slurm_srun_args"] = ["--kill-on-bad-exit=1"]  # others would wait for a lost rank
    return found


def _code_of(rank: Any) -> int:
    """Return the exit code of a rank that has left its record."""
    from submitit.core.utils import UncompletedJobError

    try:
        return int(rank.result())
    except UncompletedJobError:
        return ExitCode.FAILED


def _queued_in_slurm() -> Collection[str]:
    """Return this user's jobs that wait or run, or everything while the controller is away."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--me", "--format=%i"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.split() if done.returncode == 0 else _Everything()


class _Everything(frozenset[str]):
    """The set of all names."""

    def __contains__(self, name: object) -> bool:
        return True


def run_rank(command: Sequence[str], run_dir: str) -> int:
    """Run a rank of a job, in the process that submitit starts for it; return its exit code.

    Args:
        command: command of the program with its settings.
        run_dir: run folder of the job.

    Raises:
        RuntimeError: one of several ranks failed, so that srun ends the others.
    """
    import submitit

    task = submitit.JobEnvironment()
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is not None:
            process.send_signal(number)

    # Instead of submitit's handlers, which would requeue the job before it has saved.
    for number in SIGNALS:
        signal.signal(number, pass_on)
    variables = _variables_of_rank(task)
    process = subprocess.Popen(
        command, env=child_environment(variables), preexec_fn=stop_with_parent
    )
    code = process.wait()
    if code == ExitCode.STOPPED and _is_requeued(run_dir):
        time.sleep(_REQUEUE_SECONDS)  # Slurm ends the job; a result would say that it is over
    if task.num_tasks > 1 and code not in _ORDERLY:
        raise RuntimeError(f"rank {task.global_rank} ended with {code}")
    return code


def _variables_of_rank(task: Any) -> dict[str, str]:
    """Return the variables from which a rank reads its place."""
    is_slurm = "SLURM_JOB_ID" in os.environ and task.name() == "slurm"
    number = int(os.environ["SLURM_JOB_ID"] if is_slurm else task.job_id)
    return {
        "RANK": str(task.global_rank),
        "LOCAL_RANK": str(task.local_rank),
        "WORLD_SIZE": str(task.num_tasks),
        "MASTER_ADDR": _address_of(task.hostnames[0]) if is_slurm else "127.0.0.1",
        "MASTER_PORT": str(_FIRST_PORT + number % _NUM_PORTS),
    }


def _address_of(node: str) -> str:
    """Return the address by which Slurm itself reaches a node."""
    described = subprocess.run(
        ["scontrol", "show", "node", "--oneliner", node], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r" NodeAddr=(\S+)", described)
    return found[1] if found else node


def _is_requeued(run_dir: str) -> bool:
    file = RunFolder(Path(run_dir)).stopped
    return file.exists() and bool(read_json(file).get("requeued"))
