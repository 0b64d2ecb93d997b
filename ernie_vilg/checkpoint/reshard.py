"""A run goes on under another layout: its checkpoint is put together, then spread anew.

Putting together is done by the leader alone, at the first start under the new layout, or ahead of
it by launch/reshard.py on a machine without GPUs.

Source: ours.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from ernie_vilg.checkpoint.consolidated import Universal, find_universal, write_universal
from ernie_vilg.checkpoint.folder import (
    PRETRAIN_PARTS,
    committed_checkpoints,
    newest_checkpoint,
    step_of,
    verify_checkpoint,
    wrong_content,
)
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
from ernie_vilg.runs.run_folder import RunFolder

_PATIENCE_SECONDS = 24 * 3600.0
"""How long ranks wait for the leader to put a checkpoint together; its death ends it at once."""
_MAX_NAMED = 5
"""Differences that an error lists; the others are counted."""

logger = logging.getLogger(__name__)


class ReshardError(RuntimeError):
    """A state did not arrive as it was; its checkpoint stands."""


@dataclass(frozen=True, kw_only=True)
class Resharded:
    """What `reshard` did."""

    universal: Universal
    """The checkpoint put together."""
    is_new: bool
    """Whether it was made now, not found."""


def load_resharded(engine: Engine, checkpoint: Path, run_dir: Path) -> None:
    """Load a checkpoint of another layout; all ranks must call.

    Every tensor is compared afterwards with what was put together, bit for bit, on every rank.

    Args:
        engine: of the new layout; its state is overwritten.
        checkpoint: a folder that verifies, of a step above 0.
        run_dir: the run's folder, on a file system that all ranks see.

    Raises:
        InputError: the checkpoint cannot be put together; the message says why.
        ReshardError: what was loaded differs.
    """
    rank, world_size = engine.groups.rank, engine.groups.world_size
    universal = _found_by_all(checkpoint, run_dir, rank, world_size)
    if universal is None:
        let_leader_write(checkpoint, run_dir, rank)
        universal = _found_by_all(checkpoint, run_dir, rank, world_size)
    if universal is None:
        raise InputError(
            f"{checkpoint} was put together, but the files are not as they were written: check "
            f"the disk of {run_dir}, and start again"
        )
    state = universal.open()
    load_whole_state(engine, state)
    _check_no_difference(checkpoint, gather_everywhere(find_differences(engine, state)))
    logger.info(
        "%s is of another layout: all weights and moments are as they were, bit for bit", checkpoint
    )


def let_leader_write(checkpoint: Path, run_dir: Path, rank: int) -> None:
    """Let the leader put a checkpoint together; all ranks must call.

    They wait in a group of their own, whose time-out is not that of a step's collectives.

    Raises:
        InputError: it failed; the message says why, on every rank.
    """
    group = group_with_timeout(_PATIENCE_SECONDS)
    problem: str | None = None
    if rank == LEADER:
        logger.info("%s is of another layout: it is put together first", checkpoint)
        try:
            write_universal(checkpoint, run_dir)
        except (OSError, ValueError) as error:
            problem = str(error)
    barrier(group)
    dist.destroy_process_group(group)
    problem = broadcast_from_leader(problem)
    if problem is not None:
        raise InputError(problem)


def reshard(run_dir: Path, step: int | None, num_workers: int) -> Resharded:
    """Put a run's checkpoint together ahead of a start, without other processes.

    Args:
        run_dir: a run folder of launch/pretrain.py.
        step: of the checkpoint; None: the newest that verifies.
        num_workers: processes; 0: as many as there are cores, if the memory suffices for them.

    Raises:
        InputError: there is no such checkpoint, it does not verify, or it needs no resharding.
    """
    checkpoint = _verified_checkpoint(run_dir, step)
    if step_of(checkpoint) == 0:
        raise InputError(
            f"{checkpoint} has taken no step yet: fresh weights are the same under every layout, "
            "start the run as it is"
        )
    universal = find_universal(checkpoint, run_dir)
    if universal is not None:
        problem = wrong_content(universal.folder, universal.manifest["files"])
        if problem is None:
            return Resharded(universal=universal, is_new=False)
        logger.warning("%s is made anew: %s", universal.folder, problem)
    return Resharded(universal=write_universal(checkpoint, run_dir, num_workers), is_new=True)


def _verified_checkpoint(run_dir: Path, step: int | None) -> Path:
    steps = [step_of(path) for path in committed_checkpoints(run_dir)]
    if step is None:
        newest = newest_checkpoint(run_dir, PRETRAIN_PARTS)
        if newest is None:
            raise InputError(
                f"run={run_dir} has no checkpoint that verifies: name the run_dir of a "
                "launch/pretrain.py run"
            )
        return newest
    if step not in steps:
        raise InputError(
            f"step={step}: {run_dir} has no checkpoint of it, choose one of {steps}, or leave "
            "step out for the newest"
        )
    checkpoint = RunFolder(run_dir).checkpoint(step)
    problem = verify_checkpoint(checkpoint, PRETRAIN_PARTS)
    if problem is not None:
        raise InputError(f"step={step}: {checkpoint} is damaged ({problem}): choose another step")
    return checkpoint


def _found_by_all(checkpoint: Path, run_dir: Path, rank: int, world_size: int) -> Universal | None:
    """Look for what was put together, every rank hashing a share of it; None if it is not whole."""
    universal: Universal | None = None
    if rank == LEADER:
        universal = find_universal(checkpoint, run_dir)
    universal = broadcast_from_leader(universal)
    if universal is None:
        return None
    entries = sorted(
        universal.manifest["files"], key=lambda entry: (-entry["bytes"], entry["file"])
    )
    problems = gather_everywhere(wrong_content(universal.folder, entries[rank::world_size]))
    named = "; ".join(problem for problem in problems if problem)
    if named and rank == LEADER:
        logger.warning("%s is made anew: %s", universal.folder, named)
    return None if named else universal


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
