"""When a checkpoint of a pretraining run exists: once it is committed.

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
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ernie_vilg.files import fsync_folder
from ernie_vilg.parallel.collectives import (
    LEADER,
    barrier,
    broadcast_from_leader,
    gather_everywhere,
)
from ernie_vilg.parallel.engine import Engine
from ernie_vilg.training.commit import (
    TEMPORARY_PREFIX,
    checkpoint_path,
    checkpoints_folder,
    committed_checkpoints,
    describe_files,
    read_manifest,
    resumable_checkpoint,
    write_manifest,
)
from ernie_vilg.training.tracking import METRICS_NAME

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(
        self,
        run_dir: Path,
        keep: int,
        identity_at: Callable[[int], Mapping[str, Any]],
        data_at: Callable[[int], Mapping[str, Any]],
    ) -> None:
        """Prepare to save and restore.

        Args:
            run_dir: the run's folder, on a file system that all ranks see.
            keep: newest checkpoints that are kept.
            identity_at: JSON values that a checkpoint of a step must share with the run that
                resumes it: model, data order so far, lineage, layout, precision.
            data_at: JSON values that say where the data stand after a step, for people.
        """
        self._run_dir = run_dir
        self._keep = keep
        self._identity_at = identity_at
        self._data_at = data_at

    def restore(self, engine: Engine) -> int:
        """Load the newest checkpoint that verifies; save one of step 0 in an empty folder.

        All ranks must call.

        Returns:
            the number of steps taken so far.

        Raises:
            ValueError: no checkpoint of a non-empty run folder verifies, or the newest one
                is of another model, data order, lineage or layout.
        """
        found: Path | str | None = None
        if engine.groups.rank == LEADER:
            found = self._find()
        found = broadcast_from_leader(found)
        if isinstance(found, str):
            raise ValueError(found)
        if found is None:
            self.save(engine, 0)
            return 0
        engine.load(found)
        logger.info("resumed from %s", found)
        return int(read_manifest(found)["step"])

    def save(self, engine: Engine, step: int) -> None:
        """Commit a checkpoint of the state after `step` steps; all ranks must call."""
        final = checkpoint_path(self._run_dir, step)
        temporary = final.with_name(f"{TEMPORARY_PREFIX}{final.name}")
        rank = engine.groups.rank
        if rank == LEADER:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        barrier()
        engine.save(temporary)
        barrier()
        shares = gather_everywhere(_flush_share(temporary, rank, engine.groups.world_size))
        if rank == LEADER:
            write_manifest(
                temporary,
                step=step,
                identity=self._identity_at(step),
                files=[entry for share in shares for entry in share],
                about={
                    "data": dict(self._data_at(step)),
                    "versions": {name: version(name) for name in ("torch", "deepspeed")},
                },
            )
            if final.exists():  # saved before, and found damaged at the restart
                shutil.rmtree(final)
            temporary.rename(final)
            fsync_folder(final.parent)
            for old in committed_checkpoints(self._run_dir)[self._keep :]:
                shutil.rmtree(old)
        barrier()

    def _find(self) -> Path | str | None:
        """Return the checkpoint to load, None for a fresh run, or what is wrong as text."""
        for leftover in checkpoints_folder(self._run_dir).glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover)
        try:
            return resumable_checkpoint(self._run_dir, self._identity_at, metrics_name=METRICS_NAME)
        except ValueError as error:
            return str(error)


def _flush_share(folder: Path, rank: int, world_size: int) -> list[dict[str, Any]]:
    """Flush this rank's share of a folder's files and return their manifest entries."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())[rank::world_size]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return describe_files(folder, files)
