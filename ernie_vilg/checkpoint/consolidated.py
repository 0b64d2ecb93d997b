"""A checkpoint of any layout, put together once: which other layouts then start from.

It lies in `universal/step_<step>` of the run folder, hashed and committed as a checkpoint is, and
names the checkpoint that it was made from. It goes when a later checkpoint is committed.

Source: ours; DeepSpeed's universal checkpointing (arXiv:2406.18820) does the putting together.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ernie_vilg.checkpoint.folder import (
    MANIFEST_NAME,
    describe_files,
    read_manifest,
    step_of,
    write_manifest,
    wrong_files,
)
from ernie_vilg.config.model import model_config_from_json
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.engine.engine import CHECKPOINT_TAG
from ernie_vilg.parallel.state.consolidate import read_optimizer_file
from ernie_vilg.parallel.state.whole_state import (
    Counters,
    WholeState,
    has_average,
    write_whole_state,
)
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import (
    clear_leftovers,
    committed_folder,
    remove,
    sha256_of_file,
    without_name,
)
from ernie_vilg.system.progress import progress
from ernie_vilg.system.worker_pool import map_in_order

_STATE_FOLDER = "state"
_SMALL_BYTES = 1 << 30
"""Below which starting further processes takes longer than they save."""
_MAX_WORKERS = 16
_COPIES, _COPIES_WITH_AVERAGE = 2, 3
"""What is on the disk at once while a checkpoint is put together, in sizes of it, at most."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Universal:
    """A checkpoint put together."""

    folder: Path
    """Where."""
    manifest: dict[str, Any]
    """What it says of itself."""

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(entry["bytes"] for entry in self.manifest["files"])

    def open(self) -> WholeState:
        """Return what to read it with."""
        return WholeState(
            self.folder / _STATE_FOLDER,
            model_config_from_json(self.manifest.get("model")),
            from_json(self.manifest.get("counters"), Counters, "counters"),
        )


def find_universal(checkpoint: Path, run_dir: Path) -> Universal | None:
    """Return what was put together from this very checkpoint, None if there is no such thing.

    Names and sizes of its files are right; their hashes are yet to be checked.
    """
    folder = RunFolder(run_dir).consolidated_checkpoint(_step(checkpoint))
    if not folder.exists():
        return None
    try:
        manifest = read_manifest(folder)
        problem = wrong_files(folder, manifest)
        if problem is None and manifest["identity"] != _identity(checkpoint):
            problem = "it was made from another checkpoint"
    except (OSError, InputError) as error:
        problem = str(error)
    if problem is None:
        return Universal(folder=folder, manifest=manifest)
    logger.warning("%s is made anew: %s", folder, problem)
    return None


def write_universal(checkpoint: Path, run_dir: Path, num_workers: int = 0) -> Universal:
    """Put a checkpoint together, without other ranks.

    Args:
        checkpoint: a folder that verifies, of a step above 0.
        run_dir: its run's folder.
        num_workers: processes; 0: as many as there are cores, if the memory suffices for them.

    Raises:
        InputError: there is no room, no update has been made yet, or it failed.
    """
    folder = RunFolder(run_dir).consolidated_checkpoint(_step(checkpoint))
    manifest = read_manifest(checkpoint)
    sizes = [entry["bytes"] for entry in manifest["files"]]
    clear_leftovers(folder.parent)
    try:
        with committed_folder(folder, replace=True) as temporary:
            _check_room(checkpoint, sum(sizes), temporary)
            workers = num_workers or _num_workers(sum(sizes), max(sizes))
            _write(checkpoint, manifest, temporary, partial(_do_all, workers))
    except (OSError, RuntimeError) as error:  # torch calls a full disk a RuntimeError
        raise InputError(f"{checkpoint} could not be put together: {error}") from error
    return Universal(folder=folder, manifest=read_manifest(folder))


def discard_outdated(run_dir: Path, step: int) -> None:
    """Remove what was put together from checkpoints of before a step; the leader calls it."""
    folder = RunFolder(run_dir).consolidated_checkpoints
    clear_leftovers(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if (of_step := step_of(path)) is not None and of_step < step:
            remove(without_name(path))


def _step(folder: Path) -> int:
    step = step_of(folder)
    assert step is not None, f"{folder} is not named after a step"
    return step


def _identity(checkpoint: Path) -> dict[str, str]:
    """Return what only this checkpoint has: the hash of its manifest, which has all others."""
    return {"checkpoint": sha256_of_file(checkpoint / MANIFEST_NAME)}


def _write(
    checkpoint: Path,
    manifest: dict[str, Any],
    temporary: Path,
    do_all: Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]],
) -> None:
    model = manifest["identity"]["model"]
    counters = write_whole_state(
        checkpoint / CHECKPOINT_TAG,
        temporary / _STATE_FOLDER,
        model_config_from_json(model),
        do_all,
    )
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_num_cores()) as threads:  # hashing lets go of Python's lock
        described = threads.map(lambda file: describe_files(temporary, [file])[0], files)
        entries = list(progress(described, total=len(files), what="hash them", unit="files"))
    write_manifest(
        temporary,
        step=manifest["step"],
        identity=_identity(checkpoint),
        files=entries,
        about={"model": model, "counters": asdict(counters), "versions": manifest["versions"]},
    )


def _do_all(
    num_workers: int, function: Callable[[Any], Any], items: Sequence[Any]
) -> Iterable[Any]:
    """Work through items on several processes, saying how far it is."""
    extracts = getattr(function, "func", function).__name__.startswith("extract")
    what = "cut the files of ranks into parameters" if extracts else "put parameters together"
    results = map_in_order(function, items, num_workers=min(num_workers, len(items)))
    unit = "files" if extracts else "parameters"
    return progress(results, total=len(items), what=what, unit=unit)


def _num_workers(total_bytes: int, largest_bytes: int) -> int:
    """Return how many processes may each hold a file and copies of parts of it in memory."""
    if total_bytes < _SMALL_BYTES:
        return 1
    fitting = psutil.virtual_memory().available // (2 * largest_bytes)
    return max(1, min(_num_cores(), fitting))


def _num_cores() -> int:
    return min(len(os.sched_getaffinity(0)), _MAX_WORKERS)


def _check_room(checkpoint: Path, num_bytes: int, folder: Path) -> None:
    _, states = read_optimizer_file(checkpoint / CHECKPOINT_TAG)
    needed = num_bytes * (_COPIES_WITH_AVERAGE if has_average(states) else _COPIES)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it needs {needed} bytes beside the checkpoints, {free} are free: make room")
