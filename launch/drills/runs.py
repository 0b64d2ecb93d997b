"""Launches of a drilled run, and the results they leave."""

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from ernie_vilg.checkpoint.folder import (
    committed_checkpoints,
    read_checkpoint_manifest,
    verify_checkpoint,
)
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.data.records.ledger import read_ledger
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.jsonl import read_lines
from ernie_vilg.system.ports import free_port
from launch.drills.faults import Fault, record_of, write_fault
from launch.support.environment import child_environment

_ROOT = Path(__file__).resolve().parent.parent.parent
RANK_PROGRAM = "launch/drills/rank.py"
_VARIABLES = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
_LONGEST_SECONDS = 240.0
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 1.0
"""Interval of listing a launch's processes, which takes as long as a small step."""
_LOG_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class LaunchResult:
    """The end of one launch."""

    return_code: int
    """Exit code of the launcher."""
    seconds: float
    """Seconds from the start to the end of the last process."""
    log: str
    """Output of the launcher and its ranks."""
    injected_at: float | None
    """Unix time at which the last fault was injected; None if it was not."""
    started_at: float
    """Unix time of the start."""
    exited_at: float
    """Unix time at which the launcher was gone."""
    num_orphans: int
    """Processes that still ran `stopping.grace_seconds` after the launcher was gone. Until then
    ranks without a launcher may save."""


@dataclass(kw_only=True)
class DrilledRun:
    """One run folder and its launches."""

    folder: Path
    """Folder for settings, logs and the run."""
    config: PretrainConfig
    """Settings of the run, whose `run_dir` lies in the folder."""
    num_ranks: int
    """Default number of ranks of a launch."""
    launches: list[LaunchResult] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        """Run folder."""
        return Path(self.config.run_dir)

    def launch(
        self,
        *faults: Fault,
        environment: Mapping[str, str] | None = None,
        num_ranks: int | None = None,
        meanwhile: Callable[[int], None] = lambda process_id: None,
        longest_seconds: float = _LONGEST_SECONDS,
    ) -> LaunchResult:
        """Start or resume the run, and wait until it ends.

        Args:
            faults: faults to inject; the result has the time of the last one.
            environment: additional environment variables.
            num_ranks: ranks, if not the run's default.
            meanwhile: function to call about ten times a second with the launcher's process id.
            longest_seconds: timeout after which the launch is killed.

        Raises:
            TimeoutError: the launch was killed.
        """
        files = self._write_inputs(faults)
        log = self.folder / f"log-{len(self.launches)}.txt"
        started = time.time()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_launcher(num_ranks or self.num_ranks), RANK_PROGRAM, *map(str, files)],
                cwd=_ROOT,
                env=child_environment({**_VARIABLES, **(environment or {})}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            family = self._wait(process, log, meanwhile, longest_seconds)
        exited_at = time.time()
        orphans = _wait_for_orphans(family, str(files[0]), self.config.stopping.grace_seconds)
        record = record_of(files[-1])
        result = LaunchResult(
            return_code=process.returncode,
            seconds=time.time() - started,
            log=log.read_text(errors="replace"),
            injected_at=read_object(record)["unix_seconds"] if record.exists() else None,
            started_at=started,
            exited_at=exited_at,
            num_orphans=orphans,
        )
        self.launches.append(result)
        return result

    def _write_inputs(self, faults: Sequence[Fault]) -> list[Path]:
        """Write the settings and faults of the next launch; return the files in that order."""
        number = len(self.launches)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / f"settings-{number}.json"
        write_json(settings, asdict(self.config))
        files = [self.folder / f"fault-{number}-{index}.json" for index in range(len(faults))]
        for file, fault in zip(files, faults, strict=True):
            write_fault(file, fault)
        return [settings, *files]

    def losses(self) -> dict[int, float]:
        """Return the loss by step, without rolled-back steps."""
        return {line["step"]: line["loss"] for line in self._log_lines()}

    def step_times(self) -> list[float]:
        """Return the Unix time of every step in order, without rolled-back steps.

        The run must log every step.
        """
        return [line["unix_seconds"] for line in self._log_lines()]

    def newest(self) -> Path:
        """Return the newest checkpoint's folder."""
        return committed_checkpoints(self.run_dir)[0]

    def newest_step(self) -> int:
        """Return the newest checkpoint's step."""
        return int(read_checkpoint_manifest(self.newest())["step"])

    def state_digest(self) -> str:
        """Return the SHA-256 of every tensor of the newest checkpoint."""
        folder = self.newest()
        problem = verify_checkpoint(folder)
        assert problem is None, f"{folder}: {problem}"
        digest = hashlib.sha256()
        for file in sorted(folder.rglob("*.pt")):
            # Our own file, whose hash was just verified.
            for name, tensor in _tensors(torch.load(file, map_location="cpu", weights_only=False)):
                digest.update(f"{file.name}/{name}".encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def positions(self) -> dict[int, tuple[int, int]]:
        """Return first position and number of positions of every step, as last made."""
        lines, _ = read_ledger(RunFolder(self.run_dir).ledger)
        return {
            step: (line.at(step).first_position, line.num_positions)
            for line in lines
            for step in range(line.first_step, line.last_step + 1)
        }

    def first_step_after(self, unix_seconds: float) -> float:
        """Return the Unix time of the first step made after some moment."""
        return min(made for made in self.step_times() if made > unix_seconds)

    def report(self, name: str) -> str:
        """Return the texts of the run's reports whose names begin with `name`."""
        files = sorted(RunFolder(self.run_dir).reports.glob(f"{name}*"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def stopped(self) -> Mapping[str, Any]:
        """Return the content of stopped.json; nothing if the run was not stopped."""
        path = RunFolder(self.run_dir).stopped
        return read_object(path) if path.exists() else {}

    def _log_lines(self) -> list[dict[str, Any]]:
        metrics = [line.require() for line in read_lines(RunFolder(self.run_dir).metrics)]
        return [line for line in metrics if "loss" in line]

    def _wait(
        self,
        process: "subprocess.Popen[bytes]",
        log: Path,
        meanwhile: Callable[[int], None],
        longest_seconds: float,
    ) -> set[psutil.Process]:
        """Wait for the launcher's end; return all of its descendants that were seen."""
        family: set[psutil.Process] = set()
        deadline = time.monotonic() + longest_seconds
        next_look = 0.0
        while process.poll() is None:
            if time.monotonic() >= next_look:
                family |= _descendants(process.pid)
                next_look = time.monotonic() + _LOOK_SECONDS
            if time.monotonic() > deadline:
                _kill(process)
                raise TimeoutError(
                    f"it did not end within {longest_seconds:.0f} s; the end of {log}:\n"
                    f"{log.read_text(errors='replace')[-_LOG_CHARACTERS:]}"
                )
            meanwhile(process.pid)
            time.sleep(_POLL_SECONDS)
        return family


def _launcher(num_ranks: int) -> list[str]:
    program = str(Path(sys.executable).parent / "deepspeed")
    return [program, "--num_gpus", str(num_ranks), "--master_port", str(free_port())]


def _wait_for_orphans(family: set[psutil.Process], mark: str, grace_seconds: float) -> int:
    """Wait until no process of a launch is left; kill and count those left after the grace.

    Args:
        family: processes that were seen during the launch, data workers among them.
        mark: argument on the command line of ranks and launchers, to find those not yet seen.
        grace_seconds: timeout of the wait.
    """
    deadline = time.monotonic() + grace_seconds
    while left := _running(family) | _processes_of(mark):
        if time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    for process in left:
        process.kill()
    return len(left)


def _descendants(process_id: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(process_id).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _running(processes: set[psutil.Process]) -> set[psutil.Process]:
    found = set()
    for process in processes:
        with suppress(psutil.Error):  # the process ended meanwhile
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return found


def _processes_of(mark: str) -> set[psutil.Process]:
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # the process ended meanwhile
            if mark in process.cmdline():
                found.add(process)
    return _running(found)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.send_signal(signal.SIGKILL)
    process.wait()


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value.detach()
    elif isinstance(value, Mapping):
        for key in value:
            yield from _tensors(value[key], f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _tensors(part, f"{name}/{index}")
