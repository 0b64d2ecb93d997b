"""Search for the newest checkpoint that verifies, by all ranks together.

Each rank hashes some of the files. Nothing is unpickled before all ranks have agreed.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.checkpoint.folder import (
    CHECKPOINT_PARTS,
    committed_checkpoints,
    read_checkpoint_manifest,
    wrong_content,
    wrong_files,
)
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.layout.collectives import LEADER, broadcast_from_leader, gather_everywhere

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoundCheckpoint:
    """A checkpoint whose files are all as they were written."""

    folder: Path
    """Folder of the checkpoint."""
    manifest: dict[str, Any]
    """Content of the manifest."""


def find_newest(run_dir: Path, rank: int, world_size: int) -> FoundCheckpoint | None:
    """Return the checkpoint of the highest step that verifies, None if none does.

    All ranks must call. The leader warns of each that it skips.

    Args:
        run_dir: the run's folder, on a file system that all ranks see.
        rank: this rank.
        world_size: number of ranks.
    """
    candidates: list[Path] = committed_checkpoints(run_dir) if rank == LEADER else []
    for folder in broadcast_from_leader(candidates):
        read: dict[str, Any] | str = _read(folder) if rank == LEADER else ""
        manifest = broadcast_from_leader(read)
        if isinstance(manifest, str):
            problem: str | None = manifest
        else:
            problem = wrong_content_on_any(folder, manifest, rank, world_size)
            if problem is None:
                return FoundCheckpoint(folder=folder, manifest=manifest)
        if rank == LEADER:
            logger.warning("checkpoint %s is not used: %s", folder, problem)
    return None


def wrong_content_on_any(
    folder: Path, manifest: Mapping[str, Any], rank: int, world_size: int
) -> str | None:
    """Hash the files of a checkpoint, each rank some of them; all ranks must call.

    Returns:
        the files that differ from their hashes, in words; None if none does.
    """
    # Sorted by size, so that each rank hashes about the same number of bytes.
    entries = sorted(manifest["files"], key=lambda entry: (-entry["bytes"], entry["file"]))
    problems = gather_everywhere(wrong_content(folder, entries[rank::world_size]))
    return "; ".join(problem for problem in problems if problem) or None


def leader_acts(rank: int, action: Callable[[], None]) -> str | None:
    """Let the leader run an action; all ranks must call.

    Returns:
        on every rank, the leader's `ValueError` or `OSError` in words, None if it had none.
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
        manifest = read_checkpoint_manifest(folder, CHECKPOINT_PARTS)
        problem = wrong_files(folder, manifest)
    except (OSError, InputError) as error:
        return str(error)
    return manifest if problem is None else problem
