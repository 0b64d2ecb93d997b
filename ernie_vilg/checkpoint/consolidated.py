"""Consolidated checkpoints: whole tensors, from which a run starts under any layout.

A consolidated checkpoint is hashed and committed as a checkpoint is, and records the hash of the
checkpoint that it was made from. It is removed when a later checkpoint is committed. One process
at a time writes or removes those of a run: it holds a lock on their folder.

Source: ours; DeepSpeed's universal checkpointing (arXiv:2406.18820) does the consolidation.
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
    CHECKPOINT_PARTS,
    MANIFEST_NAME,
    committed_checkpoints,
    describe_files,
    newest_checkpoint,
    read_checkpoint_manifest,
    step_of,
    verify_checkpoint,
    write_checkpoint_manifest,
    wrong_content,
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
from ernie_vilg.storage.locks import locked
from ernie_vilg.system.progress import progress
from ernie_vilg.system.worker_pool import map_in_order

_STATE_FOLDER = "state"
_SMALL_BYTES = 1 << 30
"""Checkpoint size below which starting further processes takes longer than they save."""
_MAX_WORKERS = 16
_COPIES, _COPIES_WITH_AVERAGE = 2, 3
"""Largest disk usage while a checkpoint is consolidated, in sizes of the checkpoint."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConsolidatedCheckpoint:
    """The whole tensors of one checkpoint on disk."""

    folder: Path
    """Folder of the consolidated checkpoint."""
    manifest: dict[str, Any]
    """Content of the manifest."""

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum(entry["bytes"] for entry in self.manifest["files"])

    def open(self) -> WholeState:
        """Return a reader of its tensors."""
        return WholeState(
            self.folder / _STATE_FOLDER,
            model_config_from_json(self.manifest.get("model")),
            from_json(self.manifest.get("counters"), Counters, "counters"),
        )


def find_consolidated(checkpoint: Path, run_dir: Path) -> ConsolidatedCheckpoint | None:
    """Return the consolidated form of this very checkpoint, None if there is none.

    The names and sizes of its files are right; the caller checks their hashes.
    """
    folder = _consolidated_path(checkpoint, run_dir)
    if not folder.exists():
        return None
    try:
        manifest = read_checkpoint_manifest(folder)
        problem = wrong_files(folder, manifest)
        if problem is None and manifest["identity"] != _identity(checkpoint):
            problem = "it was made from another checkpoint"
    except (OSError, InputError) as error:
        problem = str(error)
    if problem is None:
        return ConsolidatedCheckpoint(folder=folder, manifest=manifest)
    warn_of_recreation(folder, problem)
    return None


def warn_of_recreation(folder: Path, problem: str) -> None:
    """Log why a consolidated checkpoint is made again."""
    logger.warning("%s is recreated: %s", folder, problem)


def write_consolidated(
    checkpoint: Path, run_dir: Path, num_workers: int = 0
) -> ConsolidatedCheckpoint:
    """Consolidate a checkpoint, without other ranks.

    Args:
        checkpoint: a verified checkpoint's folder, of a step above 0.
        run_dir: its run's folder.
        num_workers: processes; 0: as many as there are cores, if the memory suffices for them.

    Raises:
        InputError: another process consolidates, there is no room, no update has been made yet,
            or it failed.
    """
    folder = _consolidated_path(checkpoint, run_dir)
    manifest = read_checkpoint_manifest(checkpoint)
    sizes = [entry["bytes"] for entry in manifest["files"]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent.resolve()) as is_locked:
        if is_locked is False:
            raise InputError(
                f"{folder.parent} is locked: another process consolidates a checkpoint of this "
                "run, wait for its end and start again"
            )
        clear_leftovers(folder.parent)
        try:
            with committed_folder(folder, replace=True) as temporary:
                _check_room(checkpoint, sum(sizes), temporary)
                workers = num_workers or _num_workers(sum(sizes), max(sizes))
                _write(checkpoint, manifest, temporary, partial(_do_all, workers))
        except (OSError, RuntimeError) as error:  # torch calls a full disk a RuntimeError
            raise InputError(f"{checkpoint} could not be consolidated: {error}") from error
        return ConsolidatedCheckpoint(folder=folder, manifest=read_checkpoint_manifest(folder))


def consolidate(
    run_dir: Path, step: int | None, num_workers: int
) -> tuple[ConsolidatedCheckpoint, bool]:
    """Consolidate a run's checkpoint ahead of a start, without other ranks.

    Args:
        run_dir: a run folder of launch/pretrain.py.
        step: step of the checkpoint; None: the newest that verifies.
        num_workers: processes; 0: as many as there are cores, if the memory suffices for them.

    Returns:
        the consolidated checkpoint, and whether it was made now, not found.

    Raises:
        InputError: there is no such checkpoint, it does not verify, or it needs no resharding.
    """
    checkpoint = _verified_checkpoint(run_dir, step)
    if step_of(checkpoint) == 0:
        raise InputError(
            f"{checkpoint} has taken no step yet: fresh weights are the same under every layout, "
            "start the run as it is"
        )
    found = find_consolidated(checkpoint, run_dir)
    if found is not None:
        problem = wrong_content(found.folder, found.manifest["files"])
        if problem is None:
            return found, False
        warn_of_recreation(found.folder, problem)
    return write_consolidated(checkpoint, run_dir, num_workers), True


def discard_outdated(run_dir: Path, step: int) -> None:
    """Remove the consolidated checkpoints of earlier steps; the leader calls it.

    Does nothing while another process consolidates: the next commit removes them.
    """
    folder = RunFolder(run_dir).consolidated_checkpoints.resolve()
    with locked(folder) as is_locked:
        if is_locked is False:
            return
        clear_leftovers(folder)
        for path in folder.iterdir():
            its_step = step_of(path)
            if its_step is not None and its_step < step:
                remove(without_name(path))


def _verified_checkpoint(run_dir: Path, step: int | None) -> Path:
    if step is None:
        newest = newest_checkpoint(run_dir, CHECKPOINT_PARTS)
        if newest is None:
            raise InputError(
                f"run={run_dir} has no checkpoint that verifies: name the run_dir of a "
                "launch/pretrain.py run"
            )
        return newest
    steps = [step_of(path) for path in committed_checkpoints(run_dir)]
    if step not in steps:
        raise InputError(
            f"step={step}: {run_dir} has no checkpoint of it, choose one of {steps}, or leave "
            "step out for the newest"
        )
    checkpoint = RunFolder(run_dir).checkpoint(step)
    problem = verify_checkpoint(checkpoint, CHECKPOINT_PARTS)
    if problem is not None:
        raise InputError(f"step={step}: {checkpoint} is damaged ({problem}): choose another step")
    return checkpoint


def _consolidated_path(checkpoint: Path, run_dir: Path) -> Path:
    step = step_of(checkpoint)
    assert step is not None, f"{checkpoint} is not named after a step"
    return RunFolder(run_dir).consolidated_checkpoint(step)


def _identity(checkpoint: Path) -> dict[str, str]:
    """Return the hash of the manifest, which identifies the checkpoint and all its files."""
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
    with ThreadPoolExecutor(_num_cores()) as threads:  # hashing releases the GIL
        described = threads.map(lambda file: describe_files(temporary, [file])[0], files)
        entries = list(progress(described, total=len(files), what="hash files", unit="files"))
    write_checkpoint_manifest(
        temporary,
        step=manifest["step"],
        identity=_identity(checkpoint),
        files=entries,
        about={"model": model, "counters": asdict(counters), "versions": manifest["versions"]},
    )


def _do_all(
    num_workers: int, function: Callable[[Any], Any], items: Sequence[Any]
) -> Iterable[Any]:
    """Work through items on several processes and show the progress."""
    extracts = getattr(function, "func", function).__name__.startswith("extract")
    results = map_in_order(function, items, num_workers=min(num_workers, len(items)))
    return progress(
        results,
        total=len(items),
        what="extract parameters" if extracts else "merge parameters",
        unit="files" if extracts else "parameters",
    )


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
        raise OSError(
            f"it needs {needed} bytes beside the checkpoints, {free} are free: free some disk space"
        )
