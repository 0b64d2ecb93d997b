"""When a checkpoint exists: once it is committed.

All ranks write into a temporary folder; every file is flushed and hashed; the manifest with
those hashes is written last, and the folder gets its name by one rename. What has no such
name was never committed and is removed by the next start. Loading checks every hash before
any file is read, and falls back to the newest checkpoint whose hashes hold.

A run's first checkpoint is that of step 0, before its first step. A run folder that has
metrics but no checkpoint has therefore lost its checkpoints, and is not started again.

Source: ours.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ernie_vilg.files import fsync_folder, read_json, sha256_of_file, write_json
from ernie_vilg.parallel.collectives import (
    LEADER,
    barrier,
    broadcast_from_leader,
    gather_everywhere,
)
from ernie_vilg.parallel.engine import Engine

MANIFEST_NAME = "checkpoint.json"
FORMAT_VERSION = 1
_TEMPORARY_PREFIX = ".writing-"

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run_dir: Path, keep: int, identity: Mapping[str, Any]) -> None:
        """Prepare to save and restore.

        Args:
            run_dir: the run's folder, on a file system that all ranks see.
            keep: newest checkpoints that are kept.
            identity: JSON values that a checkpoint must share with the run that resumes it:
                model, data order, lineage, layout, precision.
        """
        self.folder = run_dir / "checkpoints"
        self._run_dir = run_dir
        self._keep = keep
        self._identity = dict(identity)

    def restore(self, engine: Engine) -> int:
        """Load the newest checkpoint that verifies; save one of step 0 in an empty folder.

        All ranks must call.

        Returns:
            the number of steps taken so far.

        Raises:
            ValueError: no checkpoint of a non-empty run folder verifies, or the newest one
                is of another model, data order, lineage or layout.
        """
        found = broadcast_from_leader(self._find() if engine.groups.rank == LEADER else None)
        if isinstance(found, str):
            raise ValueError(found)
        if found is None:
            self.save(engine, 0)
            return 0
        engine.load(self.path(found))
        logger.info("resumed from %s", self.path(found))
        return found

    def save(self, engine: Engine, step: int) -> None:
        """Commit a checkpoint of the state after `step` steps; all ranks must call."""
        final = self.path(step)
        temporary = final.with_name(f"{_TEMPORARY_PREFIX}{final.name}")
        rank = engine.groups.rank
        if rank == LEADER:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        engine.save(temporary)
        barrier()
        entries = gather_everywhere(_hash_share(temporary, rank, engine.groups.world_size))
        if rank == LEADER:
            files = sorted((entry for share in entries for entry in share), key=_file_of)
            write_json(temporary / MANIFEST_NAME, self._manifest(step, files))
            if final.exists():  # saved before, and found damaged at the restart
                shutil.rmtree(final)
            temporary.rename(final)
            fsync_folder(self.folder)
            self._remove_old()
        barrier()

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"step_{step:08d}"

    def _manifest(self, step: int, files: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "step": step,
            "identity": self._identity,
            "versions": {name: version(name) for name in ("torch", "deepspeed")},
            "files": files,
        }

    def _find(self) -> int | str | None:
        """Return the step to resume from, None for a fresh run, or what is wrong as text."""
        for leftover in self.folder.glob(f"{_TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover)
        folders = committed_checkpoints(self._run_dir)
        for folder in folders:
            problem = verify_checkpoint(folder)
            if problem is None:
                manifest = read_json(folder / MANIFEST_NAME)
                return _difference(manifest["identity"], self._identity, folder) or int(
                    manifest["step"]
                )
            logger.warning("checkpoint %s is not used: %s", folder, problem)
        if folders:
            return (
                f"none of the {len(folders)} checkpoints in {self.folder} verifies: restore one, "
                "or name another run_dir to start afresh"
            )
        if (self._run_dir / "metrics.jsonl").exists():
            return (
                f"{self._run_dir} has metrics but no checkpoint: restore its checkpoints folder, "
                "or name another run_dir to start afresh"
            )
        return None

    def _remove_old(self) -> None:
        for folder in committed_checkpoints(self._run_dir)[self._keep :]:
            shutil.rmtree(folder)


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of a run's committed checkpoints, the newest step first."""
    return sorted((run_dir / "checkpoints").glob("step_*"), reverse=True)


def newest_checkpoint(run_dir: Path) -> Path:
    """Return the newest checkpoint of a run that verifies.

    Raises:
        ValueError: there is none.
    """
    for folder in committed_checkpoints(run_dir):
        problem = verify_checkpoint(folder)
        if problem is None:
            return folder
        logger.warning("checkpoint %s is not used: %s", folder, problem)
    raise ValueError(
        f"{run_dir} has no checkpoint that verifies: name the run_dir of a launch/pretrain.py run"
    )


def verify_checkpoint(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, None if every file is as it was written."""
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file():
        return f"it has no {MANIFEST_NAME}"
    try:
        manifest = read_json(manifest_path)
        entries = [(folder / entry["file"], entry) for entry in manifest["files"]]
    except (ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST_NAME} cannot be read ({error})"
    if manifest.get("format_version") != FORMAT_VERSION:
        return f"its format_version is {manifest.get('format_version')}, not {FORMAT_VERSION}"
    for path, entry in entries:
        if not path.is_file():
            return f"{entry['file']} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{entry['file']} has {path.stat().st_size} bytes, not {entry['bytes']}"
        if sha256_of_file(path) != entry["sha256"]:
            return f"{entry['file']} differs from its SHA-256"
    return None


def _hash_share(folder: Path, rank: int, world_size: int) -> list[dict[str, Any]]:
    """Flush and hash this rank's share of a folder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = []
    for path in files[rank::world_size]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        entries.append(
            {
                "file": str(path.relative_to(folder)),
                "bytes": path.stat().st_size,
                "sha256": sha256_of_file(path),
            }
        )
    return entries


def _file_of(entry: dict[str, Any]) -> str:
    return str(entry["file"])


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], folder: Path) -> str | None:
    """Say in which settings a checkpoint differs from the run, None if in none."""
    lines = [
        f"{name}: {theirs.get(name)!r} in the checkpoint, {ours.get(name)!r} now"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    if not lines:
        return None
    return (
        f"{folder} was written by a run with other settings ({'; '.join(lines)}): set them as "
        "they were to go on, or name another run_dir to start afresh"
    )
