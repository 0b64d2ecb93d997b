"""Runs a main job: every stage that is not finished, then the job's metrics."""

import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipelines.outputs import check_output
from ernie_vilg.config.main_job import LOGS_FOLDER, JobConfig, StageConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import remove, write_json
from ernie_vilg.storage.json_files import read_json, read_object
from ernie_vilg.storage.locks import lock, warn_of_no_locks
from ernie_vilg.system.ports import free_port
from ernie_vilg.system.progress import duration
from launch.jobs.stage_process import Measurement, last_lines, run_stage_process
from launch.jobs.stage_reaper import GRACE_SECONDS
from launch.jobs.stages import (
    Settings,
    StageState,
    begin_stage,
    decide,
    fingerprints,
    missing_outputs,
    outputs_digest,
    read_state,
    write_state,
)
from launch.support.composition import settings_of
from launch.support.places import program_path

MARKER_FILE = "main_job.json"
METRICS_FILE = "metrics.json"
EVALUATION_FILE = "evaluation/evaluation.json"

_FAILURE_LINES = 30
_LINE_EVERY_SECONDS = 15.0
_STATE_EVERY_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.2
_GIB = 2**30


class StageFailedError(Exception):
    """A stage's command failed; the message has the end of its log."""


def run_job(job: JobConfig, *, force: bool, root: Path, settings: Settings = settings_of) -> None:
    """Run every stage of a job that is not finished, then write `metrics.json`.

    Args:
        job: the stages and the output folder.
        force: whether to remove the files of an earlier run first.
        root: working folder of commands, from which relative paths start.
        settings: function that composes a command's settings.

    Raises:
        InputError: the folder holds other files, or another main job uses it.
        StageFailedError: a stage failed.
    """
    folder = root / job.output_dir
    prints = fingerprints(job, root, settings)
    with owned_folder(folder, job.name, force=force) as lock:
        for number, stage in enumerate(job.stages, start=1):
            run_stage(job, number, prints[stage.name], root=root, lock=lock)
        write_json(folder / METRICS_FILE, collect_metrics(folder, job))
    print(f"{job.name}: done, see {job.output_dir}/report.html and {job.output_dir}/{METRICS_FILE}")


@contextmanager
def owned_folder(folder: Path, name: str, *, force: bool) -> Iterator[int]:
    """Lock the job's folder for the block, and yield the lock's file descriptor.

    Raises:
        InputError: the folder cannot be written, holds files of another origin, or is locked by
            another process.
    """
    marker = folder / MARKER_FILE
    check_output("job.output_dir", folder, is_filled=True).mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (marker.exists() and read_json(marker) == {"job": name}):
        raise InputError(
            f"job.output_dir={folder} holds files that are not those of job {name}: name another "
            "folder, or move the files away"
        )
    if not marker.exists():
        write_json(marker, {"job": name})
    with marker.open("r+b") as file:
        _take_lock(file.fileno(), folder)
        if force:
            _remove_content(folder, keep=marker)
        yield file.fileno()


def run_stage(job: JobConfig, number: int, fingerprint: str, *, root: Path, lock: int) -> None:
    """Run one stage unless it is finished.

    Args:
        job: the stage's job.
        number: number of the stage, from 1.
        fingerprint: fingerprint of the stage.
        root: working folder of commands.
        lock: file descriptor of the job's lock.

    Raises:
        StageFailedError: the command failed, or left an output out.
    """
    folder, stage = root / job.output_dir, job.stages[number - 1]
    title = f"[{number}/{len(job.stages)}] {stage.name}"
    previous = read_state(folder, stage.name)
    decision = decide(stage, fingerprint, previous, root)
    if decision.is_finished and previous is not None:
        print(f"{title}: unchanged since it finished ({duration(previous.seconds)}), skipped")
        return
    port = str(free_port())
    words = [argument.replace("{free_port}", port) for argument in job.command(stage)]
    command = [program_path(word, root) for word in words]
    shown = " ".join([*(f"{k}={v}" for k, v in stage.environment.items()), shlex.join(command)])
    log = folder / LOGS_FOLDER / f"{stage.name}.log"
    print(f"{title}: {decision.reason}\n  $ {shown}\n  log: {_relative(log, root)}", flush=True)
    fresh = StageState(fingerprint=fingerprint, status="running", command=shown, number=number)
    state = begin_stage(stage, decision, fresh, previous, root)
    write_state(folder, stage.name, state)
    _prepare_log(log, shown, keep=decision.is_continued)

    watcher = _Watcher(folder=folder, name=stage.name, log=log, before=state)
    try:
        outcome = run_stage_process(
            command,
            log,
            root=root,
            environment=stage.environment,
            held_file=lock,
            observe=watcher.observe,
        )
    except KeyboardInterrupt:
        write_state(folder, stage.name, replace(watcher.state, status="stopped"))
        raise
    watcher.clear_line()
    _conclude(job, stage, _with_cost(state, outcome.measurement), outcome.return_code, root)


def _conclude(
    job: JobConfig, stage: StageConfig, state: StageState, return_code: int, root: Path
) -> None:
    """Record and print how a stage ended."""
    folder = root / job.output_dir
    problem = _problem(stage, return_code, root)
    if problem:
        write_state(folder, stage.name, replace(state, status="failed"))
        log = folder / LOGS_FOLDER / f"{stage.name}.log"
        raise StageFailedError(_failure_message(stage.name, problem, log, root))
    finished = replace(state, status="finished", outputs_sha256=outputs_digest(stage, root))
    write_state(folder, stage.name, finished)
    memory = finished.peak_memory_bytes / _GIB
    print(f"  done in {duration(finished.seconds)}, peak memory {memory:.2f} GiB", flush=True)


def collect_metrics(folder: Path, job: JobConfig) -> dict[str, Any]:
    """Return the figures of a finished job: the cost per stage, and the scores."""
    states = {stage.name: read_state(folder, stage.name) for stage in job.stages}
    costs = {
        name: {"seconds": state.seconds, "peak_memory_bytes": state.peak_memory_bytes}
        for name, state in states.items()
        if state is not None
    }
    evaluation = folder / EVALUATION_FILE
    return {
        "job": job.name,
        "seconds": sum(cost["seconds"] for cost in costs.values()),
        "peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in costs.values()),
        "stages": costs,
        **(read_object(evaluation) if evaluation.exists() else {}),
    }


@dataclass(kw_only=True)
class _Watcher:
    """Updates the state on disk and the progress line while a stage runs."""

    folder: Path
    name: str
    log: Path
    before: StageState
    state: StageState = field(init=False)
    _next_state: float = 0.0
    _next_line: float = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.before
        self._next_line = time.monotonic() + _LINE_EVERY_SECONDS

    def observe(self, measurement: Measurement) -> None:
        now = time.monotonic()
        self.state = _with_cost(self.before, measurement)
        if now >= self._next_state:  # the seconds before a kill count, too
            self._next_state = now + _STATE_EVERY_SECONDS
            write_state(self.folder, self.name, self.state)
        last = last_lines(self.log, 1)[0]
        if last.startswith("$ "):
            last = "starting"  # the log has only the command
        if sys.stdout.isatty():
            line = f"  {duration(measurement.seconds)}  {last}"
            columns = shutil.get_terminal_size().columns
            print(f"\r\033[K{line[: columns - 1]}", end="", flush=True)
        elif now >= self._next_line:
            self._next_line = now + _LINE_EVERY_SECONDS
            print(f"  {duration(measurement.seconds)}  {last}", flush=True)

    def clear_line(self) -> None:
        if sys.stdout.isatty():
            print("\r\033[K", end="")


def _with_cost(before: StageState, measurement: Measurement) -> StageState:
    return replace(
        before,
        seconds=round(before.seconds + measurement.seconds, 3),
        peak_memory_bytes=max(before.peak_memory_bytes, measurement.peak_memory_bytes),
    )


def _problem(stage: StageConfig, return_code: int, root: Path) -> str:
    """Return the problem of an ended stage; "" if there is none."""
    if return_code != 0:
        return f"exit code {return_code}"
    missing = missing_outputs(stage, root)
    return f"it did not write {', '.join(missing)}" if missing else ""


def _failure_message(name: str, problem: str, log: Path, root: Path) -> str:
    lines = "\n".join(f"  | {line}" for line in last_lines(log, _FAILURE_LINES))
    return (
        f"stage {name} failed ({problem}); the end of {_relative(log, root)}:\n{lines}\n"
        f"stage {name} failed ({problem}): read the log, fix the cause, and run the same "
        f"command again\n  log: {_relative(log, root)}"
    )


def _prepare_log(log: Path, shown: str, *, keep: bool) -> None:
    """Begin a stage's log; the log of a continued stage keeps its earlier attempts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab" if keep else "wb") as file:
        file.write(f"$ {shown}\n".encode())


def _take_lock(descriptor: int, folder: Path) -> None:
    """Lock the job's folder; wait while a killed job's reaper stops its stage."""
    deadline = time.monotonic() + GRACE_SECONDS + 2.0
    while True:
        is_locked = lock(descriptor)
        if is_locked is None:
            warn_of_no_locks(folder)
        if is_locked is not False:
            return
        if time.monotonic() >= deadline:
            raise InputError(f"another main job is running in {folder}: wait for it, or stop it")
        time.sleep(_LOCK_POLL_SECONDS)


def _remove_content(folder: Path, *, keep: Path) -> None:
    for path in folder.iterdir():
        if path != keep:
            remove(path)


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
