"""Resharding: a run goes on under another layout than its checkpoint's.

The leader consolidates the checkpoint, at the first start under the new layout; launch/reshard.py
does so ahead of it, on a machine without GPUs. Then every rank loads its part.
"""

import logging
from pathlib import Path

import torch.distributed as dist

from ernie_vilg.checkpoint.consolidated import (
    ConsolidatedCheckpoint,
    find_consolidated,
    warn_of_recreation,
    write_consolidated,
)
from ernie_vilg.checkpoint.search import wrong_content_on_any
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.engine.engine import Engine
from ernie_vilg.parallel.layout.collectives import (
    LEADER,
    barrier,
    broadcast_from_leader,
    gather_everywhere,
    group_with_timeout,
)
from ernie_vilg.parallel.state.load_whole import find_differences, load_whole_state

_TIMEOUT_SECONDS = 24 * 3600.0
"""Longest time that ranks wait while the leader consolidates; its death ends the wait at once."""
_MAX_NAMED = 5
"""Differences that an error lists; the others are counted."""

logger = logging.getLogger(__name__)


class ReshardError(RuntimeError):
    """The loaded state differs from its checkpoint, which stands."""


def load_resharded(engine: Engine, checkpoint: Path, run_dir: Path) -> None:
    """Load a checkpoint of another layout; all ranks must call.

    Every rank then compares every tensor with the consolidated checkpoint, bit for bit.

    Args:
        engine: engine of the new layout; its state is overwritten.
        checkpoint: a verified checkpoint's folder, of a step above 0.
        run_dir: the run's folder, on a file system that all ranks see.

    Raises:
        InputError: the checkpoint cannot be consolidated; the message says why.
        ReshardError: the loaded state differs.
    """
    rank, world_size = engine.groups.rank, engine.groups.world_size
    consolidated = _find_on_all(checkpoint, run_dir, rank, world_size)
    if consolidated is None:
        consolidate_on_leader(checkpoint, run_dir, rank)
        consolidated = _find_on_all(checkpoint, run_dir, rank, world_size)
    if consolidated is None:
        raise InputError(
            f"{checkpoint} was consolidated, but the files are not as they were written: check "
            f"the disk of {run_dir}, and start again"
        )
    state = consolidated.open()
    load_whole_state(engine, state)
    _check_no_difference(checkpoint, gather_everywhere(find_differences(engine, state)))
    logger.info(
        "%s is of another layout: all weights and moments are as they were, bit for bit", checkpoint
    )


def consolidate_on_leader(checkpoint: Path, run_dir: Path, rank: int) -> None:
    """Let the leader consolidate a checkpoint; all ranks must call.

    They wait in a group of their own, whose timeout is not that of a step's collectives.

    Raises:
        InputError: it failed; the message says why, on every rank.
    """
    group = group_with_timeout(_TIMEOUT_SECONDS)
    problem: str | None = None
    if rank == LEADER:
        logger.info("%s is of another layout: it is consolidated first", checkpoint)
        try:
            write_consolidated(checkpoint, run_dir)
        except (OSError, ValueError) as error:
            problem = str(error)
    barrier(group)
    dist.destroy_process_group(group)
    problem = broadcast_from_leader(problem)
    if problem is not None:
        raise InputError(problem)


def _find_on_all(
    checkpoint: Path, run_dir: Path, rank: int, world_size: int
) -> ConsolidatedCheckpoint | None:
    """Find the consolidated checkpoint, each rank hashing some files; None if it is not whole."""
    found = broadcast_from_leader(
        find_consolidated(checkpoint, run_dir) if rank == LEADER else None
    )
    if found is None:
        return None
    problem = wrong_content_on_any(found.folder, found.manifest, rank, world_size)
    if problem is not None and rank == LEADER:
        warn_of_recreation(found.folder, problem)
    return found if problem is None else None


def _check_no_difference(checkpoint: Path, everywhere: list[list[str]]) -> None:
    named = [
        f"rank {rank}: {difference}"
        for rank, differences in enumerate(everywhere)
        for difference in differences
    ]
    if named:
        raise ReshardError(
            f"{checkpoint} did not arrive in the new layout as it was: "
            f"{'; '.join(named[:_MAX_NAMED])}, {len(named)} in all. The checkpoint stands: "
            "go on under the layout it was saved under, and report this"
        )
