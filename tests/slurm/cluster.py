"""A Slurm cluster of two nodes on this machine, in one folder.

It has a slurmctld, two slurmd with different node names, and a munged. All of its processes, jobs
included, have its configuration file in their environment, by which the last of them are found.

Source: slurm.conf(5) and munged(8).
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from ernie_vilg.system.ports import free_port
from launch.support.program import CONF_FOLDER
from tests.slurm.accounts import Accounts, choose_accounts

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("n1", "n2")
_ROOT = CONF_FOLDER.parent
_SYSTEM_FOLDERS = "/usr/sbin:/sbin"
_WAIT_SECONDS = 60.0
_END_SECONDS = 20.0

_GPUS = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
"""Two devices per node that Slurm treats as GPUs."""
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
# The rendezvous port follows from the job's number: another cluster on this machine has other
# numbers.
FirstJobId={first_job}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits for the lifetime of a credential, 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
# Nodes may claim more cores than this machine has.
SlurmdParameters=config_overrides
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdTimeout=10
KillWait=20
ReturnToService=2
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=4 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs(programs: Sequence[str] = PROGRAMS) -> list[str]:
    """Return the missing programs, by default among those of Slurm and munge."""
    return [name for name in programs if shutil.which(name, path=_search_path()) is None]


def wait_until(
    condition: Callable[[], bool], what: str, seconds: float = _WAIT_SECONDS, step: float = 0.3
) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: the condition does not hold after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(step)


@contextlib.contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """Suspend a process for the block."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@dataclass(kw_only=True)
class SlurmCluster:
    """A running cluster, which ends with the `with` block."""

    folder: Path
    """Folder to make for configuration, logs and state."""
    account: str | None = None
    """Only account that may submit; None allows everybody."""
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    """Reapers of munged, slurmctld and the nodes by name. A reaper adopts the processes of its
    daemon and ends them when pytest is gone, even after a SIGKILL."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a user of the cluster."""
        return {
            **os.environ,
            "PATH": _search_path(),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
        }

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        (self.folder / "state").mkdir()
        accounts = None if self.account is None else choose_accounts(self.folder)
        self._write_configuration(accounts)
        try:
            self._start_munged()
            if accounts is not None:
                self._start_accounts(accounts)
            self._start("slurmctld", "slurmctld", "-D", "-i", "-f", self.environment["SLURM_CONF"])
            for node in NODES:
                self.start_node(node)
            wait_until(self._is_idle, f"both nodes are idle, see {self.folder}/*.log")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-N", node, "-f", self.environment["SLURM_CONF"])

    def kill_node(self, node: str) -> None:
        """End everything on a node at once, as a power failure would: daemon, steps and tasks."""
        reaper = self.daemons.pop(node)
        family = psutil.Process(reaper.pid).children(recursive=True)
        reaper.kill()  # first, since it would stop the others in order
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        reaper.wait()
        psutil.wait_procs(family, timeout=_END_SECONDS)

    def run(
        self,
        *words: str,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        is_checked: bool = True,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command as a user of the cluster."""
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=_WAIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0 or not is_checked, f"{words}: {done.stdout}{done.stderr}"
        return done

    def job(self, number: str) -> dict[str, str]:
        """Return scontrol's fields of a job, such as JobState, Restarts and Reason."""
        line = self.run("scontrol", "show", "job", "--oneliner", number).stdout
        return dict(word.partition("=")[::2] for word in line.split())

    def wait_for_job(self, number: str, *states: str, seconds: float = 240) -> dict[str, str]:
        """Wait until a job is in one of some states; return its fields."""
        wait_until(
            lambda: self.job(number)["JobState"] in states,
            f"job {number} is {' or '.join(states)}",
            seconds,
        )
        return self.job(number)

    def processes(self) -> list[psutil.Process]:
        """Return all processes of this cluster, daemons and jobs alike."""
        variable = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for process in psutil.process_iter():
            try:
                # Not psutil's environ(): slurmstepd overwrites the first variables with its title.
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:  # the process ended, or is another user's
                continue
            if variable in environment.split(b"\0"):
                found.append(process)
        return found

    def rank(self, job: str, rank: int, program: str = "pretrain.py") -> psutil.Process:
        """Return the process of a rank of a job that runs a program."""
        wanted = {"SLURM_JOB_ID": job, "SLURM_PROCID": str(rank), "SLURM_STEP_ID": "1"}
        ranks = [
            process
            for process in self.processes()
            if wanted.items() <= process.environ().items() and program in str(process.cmdline())
        ]
        return min(ranks, key=lambda process: process.create_time())

    def _write_configuration(self, accounts: Accounts | None) -> None:
        (self.folder / "gres.conf").write_text(_GPUS)
        configuration = _CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            folder=self.folder,
            user=psutil.Process().username(),
            controller_port=free_port(),
            first_job=1 + secrets.randbelow(10_000),
            port_1=free_port(),
            port_2=free_port(),
        )
        kept_by = "" if accounts is None else accounts.configuration
        (self.folder / "slurm.conf").write_text(configuration + kept_by)

    def _start_accounts(self, accounts: Accounts) -> None:
        accounts.prepare()
        self._start("database", *accounts.database_command)
        wait_until(accounts.database_socket.exists, f"see {self.folder}/database.output")
        self._start("slurmdbd", "slurmdbd", "-D")
        wait_until(accounts.is_open, f"see {self.folder}/slurmdbd.output")
        user = psutil.Process().username()
        for entry in (("cluster", "test"), ("account", str(self.account)),
                      ("user", user, f"account={self.account}")):  # fmt: skip
            self.run("sacctmgr", "--immediate", "add", *entry)

    def _start_munged(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {
            "--key-file": "munge.key",
            "--socket": "munge.socket",
            "--pid-file": "munged.pid",
            "--log-file": "munged.log",
            "--seed-file": "munge.seed",
        }
        words = [f"{flag}={self.folder / name}" for flag, name in files.items()]
        # --force: munged warns of a folder in /tmp, which is writable for everybody.
        self._start("munged", "munged", "--foreground", "--force", "--num-threads=1", *words)
        wait_until((self.folder / "munge.socket").exists, "munged listens")

    def _start(self, name: str, *words: str) -> None:
        reaper = (sys.executable, "-m", "launch.jobs.stage_reaper", str(os.getpid()))
        with (self.folder / f"{name}.output").open("wb") as output:
            self.daemons[name] = subprocess.Popen(
                (*reaper, *words),
                cwd=_ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _is_idle(self) -> bool:
        dead = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
        assert not dead, "\n".join(
            (self.folder / f"{name}.output").read_text(errors="replace") for name in dead
        )
        states = self.run("sinfo", "--noheader", "--format=%T", is_checked=False).stdout.split()
        return states == ["idle"]

    def _end(self) -> None:
        """End jobs and daemons, with SIGTERM first."""
        own = {os.getpid()}
        for number in (signal.SIGTERM, signal.SIGKILL):
            alive = [process for process in self.processes() if process.pid not in own]
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            for daemon in self.daemons.values():
                _wait_briefly(daemon)
            psutil.wait_procs(alive, timeout=_END_SECONDS)
        self.daemons.clear()


def _wait_briefly(daemon: "subprocess.Popen[bytes]") -> None:
    try:
        daemon.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_FOLDERS}"
