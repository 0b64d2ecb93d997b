"""Saves and restores the checkpoints of a run.

A save copies the state into host memory and returns; a thread of every rank writes its files
into a temporary folder, hashes them and reads them back. At a later step, when no rank writes
any more, all ranks commit together: the leader writes the manifest with the hashes and renames
the folder. A folder without its final name was never committed; the next start removes it.
Loading checks every hash before any file is unpickled, and falls back to the newest checkpoint
that verifies.

A run saves its first checkpoint at step 0, before its first step. A run folder with metrics but
without a checkpoint has therefore lost its checkpoints, and the run does not start.

Source: ours; the snapshot is that of CheckFreq (Mohan et al., FAST 2021).
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.checkpoint.committer import Committer, PendingSave, RunFacts
from ernie_vilg.checkpoint.folder import START, check_fresh, check_identity
from ernie_vilg.checkpoint.retention import BestOf, Retention, no_best
from ernie_vilg.checkpoint.search import FoundCheckpoint, find_newest, leader_acts
from ernie_vilg.checkpoint.writer import RankWriter
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.errors import InputError
from ernie_vilg.parallel.engine.snapshot import Snapshot
from ernie_vilg.parallel.layout.collectives import LEADER, agree_max, gather_everywhere
from ernie_vilg.runs.phases import Phases
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.step_engine import StepEngine
from ernie_vilg.storage.files import clear_leftovers, writing_path

_POLL_SECONDS = 0.1

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """Saves have failed; the last committed checkpoint stands."""


@dataclass(frozen=True, kw_only=True)
class SaveReport:
    """Duration and size of a save."""

    stall_seconds: float
    """Seconds that training was blocked on this rank, by the copy and later by the commit."""
    write_seconds: float
    """Seconds from the first byte to the last one read back, on the slowest rank."""
    bytes: int
    """Size of the checkpoint, all ranks together."""
    snapshot_bytes: int
    """Host memory of this rank's copy, in bytes."""


class Checkpoints:
    """Saves and restores a run's checkpoints, on one of its ranks."""

    def __init__(
        self,
        run_dir: Path,
        config: CheckpointConfig,
        facts: RunFacts,
        phases: Phases,
        *,
        reshard: Callable[[Any, Path, Path], None] | None = None,
        on_commit: Callable[[Path], None] = lambda folder: None,
        best_of: BestOf = no_best,
    ) -> None:
        """Prepare to save and restore.

        Args:
            run_dir: the run's folder, on a file system that all ranks see.
            config: interval, method and retention of saves.
            facts: facts about the run for the manifest.
            phases: is told of the points that a save passes.
            reshard: loads a checkpoint of another layout, given the engine, the checkpoint and
                `run_dir`; all ranks call it. None: there is no other layout.
            on_commit: called by the leader with each committed checkpoint, and with the one that
                the run resumes from, because a kill may have come before the call.
            best_of: names the best of some checkpoints, which retention keeps.
        """
        self._run_dir = run_dir
        self._config = config
        self._facts = facts
        self._retention = Retention(
            run_dir, keep=config.keep, keep_every=config.keep_every, best_of=best_of
        )
        self._reshard = reshard
        self._committer = Committer(run_dir, facts, self._retention, phases, on_commit)
        self._writer = RankWriter(phases)
        self._snapshot = Snapshot()
        self._pending: PendingSave | None = None
        self._stall_seconds = 0.0  # of the pending save so far
        self._failures: list[str] = []  # of consecutive saves
        self.restored_state: dict[str, Any] = {}
        """State that was passed to the `save` of the restored checkpoint."""
        self.last_save: SaveReport | None = None
        """Report of the last checkpoint committed in this process."""
        self.last_step: int | None = None
        """Step of the newest checkpoint committed or loaded in this process."""

    @property
    def is_writing(self) -> bool:
        """Whether this rank's thread is writing; `commit_written` would wait for it."""
        return self._writer.is_writing

    def restore(self, engine: StepEngine) -> int:
        """Load the newest checkpoint that verifies; save one of step 0 in an empty folder.

        All ranks must call.

        Returns:
            the number of steps taken so far.

        Raises:
            InputError: no checkpoint of a non-empty run folder verifies, or the newest one
                is of another model, data order or lineage.
            CheckpointError: the first checkpoint cannot be saved.
        """
        rank = engine.groups.rank
        folder = RunFolder(self._run_dir).checkpoints
        _require(leader_acts(rank, lambda: clear_leftovers(folder)))
        found = find_newest(self._run_dir, rank, engine.groups.world_size)
        if found is not None:
            step = self._load(engine, found)
            _require(leader_acts(rank, lambda: self._committer.settle(step, found.folder)))
            return step
        _require(leader_acts(rank, lambda: check_fresh(self._run_dir)))
        self.save(engine, 0)
        self.finish()  # before there are metrics: metrics without a checkpoint mean a lost one
        return 0

    def reload(self, engine: StepEngine) -> int:
        """Go back to the newest checkpoint that verifies; all ranks must call.

        Returns:
            the step of that checkpoint.

        Raises:
            InputError: none verifies.
        """
        self._wait()
        found = find_newest(self._run_dir, engine.groups.rank, engine.groups.world_size)
        if found is None:
            raise InputError(
                f"{self._run_dir} has no checkpoint that verifies: restore its checkpoints folder"
            )
        return self._load(engine, found)

    def save(
        self, engine: StepEngine, step: int, *, state: Mapping[str, Any] | None = None
    ) -> None:
        """Begin a checkpoint of the state after `step` steps; all ranks must call.

        Args:
            engine: engine whose state is copied.
            step: steps taken.
            state: JSON values that `restored_state` returns after a restart.

        Raises:
            CheckpointError: more than `checkpoint.max_failed_saves` in a row have failed.
        """
        self._wait()
        started, rank = time.monotonic(), engine.groups.rank
        self._snapshot.clear()
        engine.save(self._snapshot)
        needed_bytes = sum(gather_everywhere(self._snapshot.num_bytes))
        pending = PendingSave(
            step=step,
            folder=writing_path(RunFolder(self._run_dir).checkpoint(step)),
            state=dict(state or {}),
            needed_bytes=needed_bytes,
        )
        problem = leader_acts(rank, lambda: self._committer.prepare(pending))
        if problem is not None:
            self._note_failure(rank, step, problem)
            return
        self._writer.start(pending.folder, self._snapshot.files, rank, engine.groups.device)
        self._pending = pending
        self._stall_seconds = time.monotonic() - started
        if not self._config.asynchronous:
            self._wait()

    def commit_written(self) -> None:
        """Commit the pending save, if there is one; all ranks must call, when none `is_writing`.

        Raises:
            CheckpointError: more than `checkpoint.max_failed_saves` in a row have failed.
        """
        if self._pending is None:
            return
        started = time.monotonic()
        pending, self._pending = self._pending, None
        result = self._writer.result()
        self._snapshot.clear()
        results = gather_everywhere(result)
        problem = leader_acts(result.rank, lambda: self._committer.commit(pending, results))
        if problem is not None:
            self._note_failure(result.rank, pending.step, problem)
            return
        self._failures = []
        self.last_step = pending.step
        self.last_save = SaveReport(
            stall_seconds=self._stall_seconds + time.monotonic() - started,
            write_seconds=max(each.seconds for each in results),
            bytes=sum(entry.bytes for each in results for entry in each.files),
            snapshot_bytes=self._snapshot.num_bytes,
        )

    def finish(self) -> None:
        """Wait until everything is written and committed; all ranks must call.

        Raises:
            CheckpointError: the last save failed.
        """
        self._wait()
        self._retention.finish()
        if self._failures:
            raise CheckpointError(f"{self._failures[-1]}; {self._last_checkpoint()}")

    def _wait(self) -> None:
        """Wait for the pending save by polling, so that no collective runs into its timeout."""
        if self._pending is None:
            return
        started = time.monotonic()
        while any(agree_max([self.is_writing])):
            self._writer.wait(_POLL_SECONDS)
        self._stall_seconds += time.monotonic() - started
        self.commit_written()

    def _load(self, engine: StepEngine, found: FoundCheckpoint) -> int:
        rank, folder, manifest = engine.groups.rank, found.folder, found.manifest
        step = int(manifest["step"])
        theirs, identity_at = manifest["identity"], self._facts.identity_at
        _require(leader_acts(rank, lambda: check_identity(folder, theirs, identity_at(step))))
        self.restored_state, self.last_step = dict(manifest["state"]), step
        if manifest["layout"] == self._facts.layout:
            engine.load(folder)
        elif step == 0 and START not in theirs:  # fresh weights are the same under every layout
            self.save(engine, 0)
            self.finish()
        elif self._reshard is not None:
            self._reshard(engine, folder, self._run_dir)
        else:
            raise InputError(
                f"{folder} is of another layout ({manifest['layout']}, not {self._facts.layout}): "
                "start with the layout that it was saved under"
            )
        logger.info("resumed from %s", folder)
        return step

    def _note_failure(self, rank: int, step: int, problem: str) -> None:
        """Warn, or stop the run; the same on all ranks."""
        self._failures.append(f"the checkpoint of step {step} could not be saved: {problem}")
        if len(self._failures) > self._config.max_failed_saves:
            raise CheckpointError(
                f"{self._failures[-1]}; {len(self._failures)} saves in a row have failed "
                f"(checkpoint.max_failed_saves={self._config.max_failed_saves}); "
                f"{self._last_checkpoint()}"
            )
        if rank == LEADER:
            logger.warning("%s; %s", self._failures[-1], self._last_checkpoint())

    def _last_checkpoint(self) -> str:
        if self.last_step is None:
            return f"{self._run_dir} has no checkpoint yet: free some disk space and start again"
        return f"the checkpoint of step {self.last_step} stands"


def _require(problem: str | None) -> None:
    if problem is not None:
        raise InputError(problem)
