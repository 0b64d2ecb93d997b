"""The newest checkpoint whose hashes hold, found by all ranks together.

Every rank hashes its share of the files. Nothing is unpickled before all of them have agreed.

Source: ours.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.checkpoint.folder import (
    PRETRAIN_PARTS,
    committed_checkpoints,
    read_manifest,
    wrong_content,
    wrong_files,
)
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.layout.collectives import LEADER, broadcast_from_leader, gather_everywhere

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoundCheckpoint:
    """A checkpoint every file of which is as it was written."""

    folder: Path
    """Where it is."""
    manifest: dict[str, Any]
    """What it says of itself."""


def find_newest(run_dir: Path, rank: int, world_size: int) -> FoundCheckpoint | None:
    """Return the checkpoint of the highest step that verifies, None if none does.

    All ranks must call. The leader warns of those that are passed over.

    Args:
        run_dir: the run's folder, on a file system that all ranks see.
        rank: this one.
        world_size: number of ranks.
    """
    candidates: list[Path] = committed_checkpoints(run_dir) if rank == LEADER else []
    for folder in broadcast_from_leader(candidates):
        read: dict[str, Any] | str = _read(folder) if rank == LEADER else ""
        manifest = broadcast_from_leader(read)
        if isinstance(manifest, str):
            problems: list[str | None] = [manifest]
        else:
            problems = gather_everywhere(_wrong_share(folder, manifest, rank, world_size))
            if not any(problems):
                return FoundCheckpoint(folder=folder, manifest=manifest)
        if rank == LEADER:
            named = "; ".join(problem for problem in problems if problem)
            logger.warning("checkpoint %s is not used: %s", folder, named)
    return None


def leader_acts(rank: int, action: Callable[[], None]) -> str | None:
    """Let the leader do something; all ranks must call.

    Returns:
        on every rank, what kept the leader from it (a `ValueError` or `OSError`), None if nothing.
    """
    problem: str | None = None
    if rank == LEADER:
        try:
            action()
        except (OSError, ValueError) as error:
            problem = str(error)
    return broadcast_from_leader(problem)


def _read(folder: Path) -> dict[str, Any] | str:
    """Return the manifest, or what is wrong with it or with names and sizes of files."""
    try:
        manifest = read_manifest(folder, PRETRAIN_PARTS)
        problem = wrong_files(folder, manifest)
    except (OSError, InputError) as error:
        return str(error)
    return manifest if problem is None else problem


def _wrong_share(folder: Path, manifest: dict[str, Any], rank: int, world_size: int) -> str | None:
    """Hash this rank's share of the files: large ones first, so that shares are about equal."""
    entries = sorted(manifest["files"], key=lambda entry: (-entry["bytes"], entry["file"]))
    return wrong_content(folder, entries[rank::world_size])
