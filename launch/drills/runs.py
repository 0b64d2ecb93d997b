"""One launch of a drilled run, and what it left behind.

Source: ours.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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
from ernie_vilg.data.records.ledger import read_steps
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.jsonl import read_lines
from ernie_vilg.system.ports import free_port
from launch.drills.faults import Fault, write_fault

_ROOT = Path(__file__).resolve().parent.parent.parent
RANK_PROGRAM = "launch/drills/rank.py"
_LONGEST_SECONDS = 240.0
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 1.0
"""How often a launch's processes are listed, which takes the time of a small step."""
_LOG_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a launch ended."""

    return_code: int
    """Of the launcher."""
    seconds: float
    """From its start to the end of its last process."""
    log: str
    """What it and its ranks printed."""
    struck_at: float | None
    """Unix time at which the fault happened, None if it did not."""
    started_at: float
    """Unix time."""
    exited_at: float
    """Unix time at which the launcher was gone."""
    num_orphans: int
    """Processes that were left `stopping.grace_seconds` after the launcher was gone: until then
    ranks that have lost it may save."""


@dataclass(kw_only=True)
class DrilledRun:
    """One run folder and the launches on it."""

    folder: Path
    """Of settings, logs and the run."""
    config: PretrainConfig
    """The run; `run_dir` lies in the folder."""
    num_ranks: int
    """Of its launches, unless one says otherwise."""
    launches: list[Launch] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        """The run's own folder."""
        return Path(self.config.run_dir)

    def launch(
        self,
        *faults: Fault,
        environment: Mapping[str, str] | None = None,
        num_ranks: int | None = None,
        meanwhile: Callable[[int], None] = lambda process_id: None,
        longest_seconds: float = _LONGEST_SECONDS,
    ) -> Launch:
        """Start the run, or go on with it, and wait until it ends.

        Args:
            faults: what strikes it from inside; the last is the one whose time is told.
            environment: variables on top of ours.
            num_ranks: other than usual.
            meanwhile: called about ten times a second with the launcher's process id.
            longest_seconds: after which it is killed.

        Raises:
            TimeoutError: it ran that long.
        """
        number = len(self.launches)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / f"settings-{number}.json"
        write_json(settings, asdict(self.config))
        words = [str(settings)]
        for index, fault in enumerate(faults):
            words.append(str(self.folder / f"fault-{number}-{index}.json"))
            write_fault(Path(words[-1]), fault)
        log = self.folder / f"log-{number}.txt"
        started = time.time()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_launcher(num_ranks or self.num_ranks), RANK_PROGRAM, *words],
                cwd=_ROOT,
                env={**_environment(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            family = self._wait(process, log, meanwhile, longest_seconds)
        exited_at = time.time()
        orphans = _wait_for_orphans(family, str(settings), self.config.stopping.grace_seconds)
        struck = Path(words[-1]).with_suffix(".struck")
        done = Launch(
            return_code=process.returncode,
            seconds=time.time() - started,
            log=log.read_text(errors="replace"),
            struck_at=read_object(struck)["unix_seconds"] if struck.exists() else None,
            started_at=started,
            exited_at=exited_at,
            num_orphans=orphans,
        )
        self.launches.append(done)
        return done

    def losses(self) -> dict[int, float]:
        """Return the loss of every step that counts."""
        metrics = [line.require() for line in read_lines(RunFolder(self.run_dir).metrics)]
        return {line["step"]: line["loss"] for line in metrics if "loss" in line}

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
            # Ours, and its hash has just been checked.
            for name, tensor in _tensors(torch.load(file, map_location="cpu", weights_only=False)):
                digest.update(f"{file.name}/{name}".encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def positions(self) -> dict[int, tuple[int, int]]:
        """Return first position and number of positions of every step, as last made."""
        records = read_steps(self.run_dir).records
        return {
            int(record["step"]): (int(record["first_position"]), int(record["num_positions"]))
            for record in records
        }

    def first_step_after(self, unix_seconds: float) -> float:
        """Return the Unix time of the first step made after some moment."""
        times = read_steps(self.run_dir).records["unix_seconds"]
        return float(times[times > unix_seconds].min())

    def report(self, name: str) -> str:
        """Return the texts of the run's reports whose names begin so."""
        files = sorted(RunFolder(self.run_dir).reports.glob(f"{name}*"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def stopped(self) -> Mapping[str, Any]:
        """Return what the run says of its stop, nothing if it was not stopped."""
        path = RunFolder(self.run_dir).stopped
        return read_object(path) if path.exists() else {}

    def _wait(
        self,
        process: "subprocess.Popen[bytes]",
        log: Path,
        meanwhile: Callable[[int], None],
        longest_seconds: float,
    ) -> set[psutil.Process]:
        """Wait for the launcher's end; return every descendant of it that was seen."""
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


def _environment() -> dict[str, str]:
    programs = Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{programs}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["PYTHONPATH"] = str(_ROOT)
    return environment


def _wait_for_orphans(family: set[psutil.Process], mark: str, grace_seconds: float) -> int:
    """Wait until no process of a launch is left; kill and count those that stay too long.

    Args:
        family: processes that were seen during the launch; data workers have no mark.
        mark: a word of the command line of ranks and launchers, which may have come later.
        grace_seconds: how long they may stay.
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
        with suppress(psutil.Error):  # it ended meanwhile
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return found


def _processes_of(mark: str) -> set[psutil.Process]:
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile
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
