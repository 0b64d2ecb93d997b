"""Runs the jobs of a sweep, each as a process with a run folder of its own: one after another, or
as `submitted_sweep.py` submits them.

A job is the program without --multirun, so it resumes, or ends at once if it is done, as it does
alone. A failure does not stop the jobs after it; a signal does, and the running job gets it too.
"""

import dataclasses
import logging
import math
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_bytes
from ernie_vilg.storage.jsonl import read_lines
from launch.support.composition import compose_program
from launch.support.environment import child_environment, is_launched
from launch.support.process_tree import stop_with_parent
from launch.support.sweep import Job, jobs_of

TABLE_NAME = "sweep.tsv"
PAGE_NAME = "sweep.html"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_WORDS = {
    ExitCode.DONE: "done",
    ExitCode.BAD_SETTINGS: "refused",
    ExitCode.STOPPED: "stopped",
}
NOT_STARTED = "not started"
SUBMITTED = "submitted"
_NOT_FAILED = (_WORDS[ExitCode.DONE], _WORDS[ExitCode.STOPPED], NOT_STARTED, SUBMITTED)

logger = logging.getLogger(__name__)


def run_sweep(name: str, schema: Any, options: Sequence[str], *, has_ranks: bool) -> ExitCode:
    """Run a sweep, write and print its table, and write its page.

    Args:
        name: program, a file of launch/.
        schema: dataclass of its settings.
        options: its command line, without --multirun.
        has_ranks: whether it trains; other programs have no sweeps.

    Returns:
        exit code: failed if any job failed, stopped if one was stopped and none failed.

    Raises:
        InputError: the program has no sweeps, a launcher started it, or a job's settings are wrong.
    """
    is_run = has_ranks and "run_dir" in {field.name for field in dataclasses.fields(schema)}
    if not is_run:
        raise InputError(
            f"--multirun: {name} has no run folder, so no sweep: leave it out, and start the "
            "program once for each value"
        )
    if is_launched():
        raise InputError(
            "--multirun: a launcher started this program, and a sweep starts its jobs itself: "
            "start it with python, and for jobs of several ranks add hydra/launcher=submitit_slurm "
            "(docs/settings.md), or let the launcher start one job at a time"
        )
    return _sweep_of(name, options).run()


def _sweep_of(name: str, options: Sequence[str]) -> "Sweep":
    """Check everything that needs no job; return the sweep that runs them here or submits them."""
    # Imported here: it is built on the sweep of this module.
    from launch.support.submitted_sweep import (
        SubmittedSweep,
        check_ranks,
        is_queue_option,
        queue_of,
    )

    queue_options = [option for option in options if is_queue_option(option)]
    jobs = jobs_of([option for option in options if option not in queue_options])
    command = [sys.executable, "-m", f"launch.{name}"]
    folder = _folder_of(name, jobs)
    if not queue_options:
        return Sweep(command, folder, jobs)
    queue = queue_of(queue_options, name)
    check_ranks(name, jobs, queue.num_ranks)
    return SubmittedSweep(command, folder, jobs, queue)


def _folder_of(name: str, jobs: Sequence[Job]) -> Path:
    """Check the settings of all jobs; return the sweep's folder."""
    if any("run_dir" in job.swept for job in jobs):
        raise InputError(
            "run_dir has several values: give one, the folder of the sweep, in which every job "
            "has a run folder of its own"
        )
    folders = {compose_program(name, job.options).run_dir for job in jobs}
    if len(folders) > 1:
        raise InputError(
            f"the jobs have several run_dirs ({', '.join(sorted(folders))}): add run_dir=FOLDER, "
            "the folder of the sweep"
        )
    folder = Path(folders.pop())
    if RunFolder(folder).settings.exists():
        raise InputError(f"run_dir={folder} is a run's folder: name another one for the sweep")
    return folder


class Sweep:
    """The jobs of a sweep, and how each ended."""

    def __init__(self, command: Sequence[str], folder: Path, jobs: Sequence[Job]) -> None:
        """Take what will run.

        Args:
            command: command of the program, without settings.
            folder: folder of the sweep.
            jobs: its jobs in their order.
        """
        self._command = command
        self._folder = folder
        self._jobs = jobs
        self._endings = dict.fromkeys((job.name for job in jobs), NOT_STARTED)
        self._process: subprocess.Popen[bytes] | None = None
        self._signal_number: int | None = None

    def run(self) -> ExitCode:
        """Run the jobs that are left; return the exit code."""
        for number in SIGNALS:
            signal.signal(number, self._pass_on)
        for index, job in enumerate(self._jobs):
            if self._signal_number is not None:
                break
            logger.info("job %d of %d: %s", index + 1, len(self._jobs), job.name)
            self._endings[job.name] = ending_in_words(self._run_job(job))
            self._write()
        return self._finish()

    def _finish(self) -> ExitCode:
        """Write the page and print the table; return the exit code."""
        self._write_page()
        print(aligned(self._rows()), flush=True)
        return self._exit_code()

    def _command_of(self, job: Job) -> list[str]:
        options = [each for each in job.options if each.partition("=")[0] != "run_dir"]
        return [*self._command, *options, f"run_dir={self._folder / job.name}"]

    def _run_job(self, job: Job) -> int:
        self._process = subprocess.Popen(
            self._command_of(job),
            env=child_environment({}),
            start_new_session=True,  # Ctrl-C reaches only this program, which passes it on
            preexec_fn=stop_with_parent,
        )
        if self._signal_number is not None:  # it came while the process was made
            self._process.send_signal(self._signal_number)
        return self._process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal_number = number
        if self._process is not None:
            self._process.send_signal(number)

    def _exit_code(self) -> ExitCode:
        counts = Counter(self._endings.values())
        failed = {
            name: ending for name, ending in self._endings.items() if ending not in _NOT_FAILED
        }
        summary = ", ".join(f"{count} {ending}" for ending, count in counts.items())
        logger.info("%d jobs: %s; see %s", len(self._jobs), summary, self._folder / PAGE_NAME)
        for name, ending in failed.items():
            logger.error("%s: %s", name, ending)
        if failed:
            return ExitCode.FAILED
        done = _WORDS[ExitCode.DONE]
        return ExitCode.DONE if counts[done] == len(self._jobs) else ExitCode.STOPPED

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        text = "".join("\t".join(row) + "\n" for row in self._rows())
        write_bytes(self._folder / TABLE_NAME, text.encode())

    def _write_page(self) -> None:
        if not self._folder.is_dir():  # a signal came before the first job
            return
        from ernie_vilg.evaluation.run_report.sweep_page import sweep_html  # matplotlib is slow

        values = {job.name: job.swept for job in self._jobs}
        page = sweep_html(self._folder, values, self._rows())
        write_bytes(self._folder / PAGE_NAME, page.encode())

    def _rows(self) -> list[list[str]]:
        """Return the table: values, ending, last step and its losses of every job."""
        last = {job.name: last_losses(RunFolder(self._folder / job.name)) for job in self._jobs}
        losses = list(dict.fromkeys(key for entry in last.values() for key in entry))
        keys = list(self._jobs[0].swept)
        rows = [[*keys, "ending", *losses, "run folder"]]
        for job in self._jobs:
            numbers = [_number(last[job.name].get(key)) for key in losses]
            rows.append([*job.swept.values(), self._endings[job.name], *numbers, job.name])
        return [[_one_line(cell) for cell in row] for row in rows]


def ending_in_words(return_code: int) -> str:
    """Return how a job ended, from its exit code or minus the number of the signal."""
    if return_code < 0:
        return f"killed by {signal.Signals(-return_code).name}"
    return next((word for code, word in _WORDS.items() if code == return_code), "failed")


def last_losses(run: RunFolder) -> dict[str, float]:
    """Return the step and the losses of a run's last logged step; {} without one.

    Raises:
        InputError: the file of metrics is not the run's.
    """
    found: dict[str, float] = {}
    for line in read_lines(run.metrics) if run.metrics.exists() else ():
        if not line.is_whole:  # a kill cut it; the run's next start removes it
            break
        entry = line.require()
        if "loss" in entry:
            found = {key: value for key, value in entry.items() if _is_loss(key, value)}
    return found


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _is_loss(key: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (key == "step" or key.startswith("loss") or key.endswith("_loss"))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if math.isfinite(value) else str(value)


def _one_line(cell: str) -> str:
    return " ".join(cell.split())
