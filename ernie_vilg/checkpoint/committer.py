"""The leader's part of a save: check the disk space before, commit all or nothing after."""

import logging
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ernie_vilg import __version__
from ernie_vilg.checkpoint.folder import write_checkpoint_manifest
from ernie_vilg.checkpoint.retention import Retention
from ernie_vilg.checkpoint.writer import WriteResult
from ernie_vilg.errors import InputError
from ernie_vilg.runs.phases import Phases
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import put_folder, remove, write_json

_PACKAGES = ("torch", "deepspeed", "megatron-core")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Facts about the run for the manifest, as JSON values."""

    identity_at: Callable[[int], Mapping[str, Any]]
    """Values at a step that a checkpoint must share with the run that resumes it: model, data
    order so far, lineage, precision."""
    data_at: Callable[[int], Mapping[str, Any]]
    """Position in the data after a step, for people."""
    layout: Mapping[str, Any]
    """Distribution of the state over ranks. A checkpoint of another layout is resharded."""
    config_hash: str
    """SHA-256 of all settings, for people."""


@dataclass(frozen=True, kw_only=True)
class PendingSave:
    """A checkpoint that is being written."""

    step: int
    """Steps taken."""
    folder: Path
    """Folder that ranks write into until the commit."""
    state: Mapping[str, Any]
    """JSON values that are saved with it."""
    needed_bytes: int
    """Approximate size of all ranks' files."""


class Committer:
    """Makes checkpoints of the files that ranks have written; the leader alone uses it."""

    def __init__(
        self,
        run_dir: Path,
        facts: RunFacts,
        retention: Retention,
        phases: Phases,
        on_commit: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self._folder = RunFolder(run_dir)
        self._facts = facts
        self._retention = retention
        self._phases = phases
        self._on_commit = on_commit
        self._versions = {name: version(name) for name in _PACKAGES}
        self._versions |= {"python": platform.python_version(), "ernie-vilg": __version__}

    def prepare(self, save: PendingSave) -> None:
        """Make the folder that ranks write into.

        Raises:
            InputError: the file system has no room for them.
            OSError: the folder cannot be made.
        """
        self._retention.finish()
        remove(save.folder)
        save.folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(save.folder.parent).free < save.needed_bytes:
            raise InputError(self._with_room("the disk is full", save.needed_bytes))
        save.folder.mkdir()

    def commit(self, save: PendingSave, results: Sequence[WriteResult]) -> None:
        """Make a checkpoint of the files of all ranks, or remove them all.

        Raises:
            InputError: a rank has failed, or the leader now; nothing is left of the save.
        """
        try:
            failures = [f"rank {each.rank}: {each.failure}" for each in results if each.failure]
            if failures:
                raise InputError("; ".join(failures))
            self._write_manifest(save, results)
            self._phases.point("save: before rename")
            put_folder(save.folder, self._folder.checkpoint(save.step))
        except (OSError, ValueError) as error:
            shutil.rmtree(save.folder, ignore_errors=True)
            raise InputError(self._with_room(str(error), save.needed_bytes)) from error
        try:
            self._phases.point("save: before pointer")
            self._write_pointer(save.step)
            self._phases.point("save: after pointer")
            self._on_commit(self._folder.checkpoint(save.step))
            self._retention.apply(save.step)
        except OSError as error:  # the checkpoint stands
            logger.warning(
                "the checkpoint of step %d is saved, its commit could not be finished: %s",
                save.step,
                error,
            )

    def settle(self, step: int, folder: Path) -> None:
        """Finish the commit of the checkpoint that a run resumes from, where a kill stopped it.

        Args:
            step: step of the checkpoint.
            folder: the checkpoint.
        """
        try:
            self._write_pointer(step)
            self._on_commit(folder)
            self._retention.apply(step)
        except OSError as error:  # the checkpoint stands
            logger.warning(
                "the checkpoint of step %d is loaded, its commit could not be finished: %s",
                step,
                error,
            )

    def _write_manifest(self, save: PendingSave, results: Sequence[WriteResult]) -> None:
        self._phases.point("save: before manifest")
        write_checkpoint_manifest(
            save.folder,
            step=save.step,
            identity=self._facts.identity_at(save.step),
            files=[asdict(entry) for each in results for entry in each.files],
            about={
                "layout": dict(self._facts.layout),
                "data": dict(self._facts.data_at(save.step)),
                "state": dict(save.state),
                "config_hash": self._facts.config_hash,
                "versions": self._versions,
            },
        )

    def _write_pointer(self, step: int) -> None:
        content = {"step": step, "folder": self._folder.checkpoint(step).name}
        write_json(self._folder.checkpoint_pointer, content)

    def _with_room(self, problem: str, needed_bytes: int) -> str:
        free = shutil.disk_usage(self._folder.checkpoints).free
        return f"{problem} ({needed_bytes:,} bytes are needed, {free:,} are free)"
