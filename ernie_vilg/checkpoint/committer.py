"""The leader's part of a save: room before it, one checkpoint or nothing after it.

Source: ours.
"""

import logging
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ernie_vilg.checkpoint.folder import write_manifest
from ernie_vilg.checkpoint.retention import Retention
from ernie_vilg.checkpoint.writer import Share
from ernie_vilg.errors import InputError
from ernie_vilg.runs.phases import Phases
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import put_folder, remove, write_json, writing_path

_PACKAGES = ("torch", "deepspeed", "megatron-core")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a manifest says of the run, as JSON values."""

    identity_at: Callable[[int], Mapping[str, Any]]
    """What the checkpoint of a step must share with the run that resumes it: model, data order so
    far, lineage, precision."""
    data_at: Callable[[int], Mapping[str, Any]]
    """Where the data stand after a step, for people."""
    layout: Mapping[str, Any]
    """How the state is spread over ranks."""
    config_hash: str
    """SHA-256 of all settings, for people."""


@dataclass(frozen=True, kw_only=True)
class PendingSave:
    """A checkpoint that is being written."""

    step: int
    """Steps taken."""
    state: Mapping[str, Any]
    """JSON values that are saved with it."""
    needed_bytes: int
    """Of all ranks' files, about."""


class Committer:
    """Makes checkpoints of what ranks have written; used by the leader alone."""

    def __init__(
        self, run_dir: Path, facts: RunFacts, retention: Retention, phases: Phases
    ) -> None:
        self._run_dir = run_dir
        self._folder = RunFolder(run_dir)
        self._facts = facts
        self._retention = retention
        self._phases = phases
        self._versions = {name: version(name) for name in _PACKAGES}
        self._versions["python"] = platform.python_version()

    def make_room(self, step: int, needed_bytes: int) -> None:
        """Make the folder that ranks write into.

        Args:
            step: steps taken.
            needed_bytes: of all ranks' files, about.

        Raises:
            InputError: the file system has no room for them.
            OSError: the folder cannot be made.
        """
        self._retention.finish()
        temporary = temporary_path(self._run_dir, step)
        remove(temporary)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(temporary.parent).free < needed_bytes:
            raise InputError(self._with_room("the disk is full", needed_bytes))
        temporary.mkdir()

    def commit(self, save: PendingSave, shares: Sequence[Share]) -> None:
        """Make a checkpoint of what all ranks have written, or of nothing.

        Raises:
            InputError: a rank has failed, or the leader now; nothing is left of the save.
        """
        temporary = temporary_path(self._run_dir, save.step)
        try:
            failures = [f"rank {share.rank}: {share.failure}" for share in shares if share.failure]
            if failures:
                raise InputError("; ".join(failures))
            self._write_manifest(temporary, save, shares)
            self._phases.point("save: before rename")
            put_folder(temporary, self._folder.checkpoint(save.step))
        except (OSError, ValueError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise InputError(self._with_room(str(error), save.needed_bytes)) from error
        try:
            self._phases.point("save: before pointer")
            self._write_pointer(save.step)
            self._phases.point("save: after pointer")
            self._retention.apply(save.step)
        except OSError as error:  # the checkpoint stands
            logger.warning("the checkpoint of step %d is saved, but then: %s", save.step, error)

    def settle(self, step: int) -> None:
        """Do what a kill after the commit of step `step` left undone, before it is gone on from."""
        try:
            self._write_pointer(step)
            self._retention.apply(step)
        except OSError as error:  # the checkpoint stands
            logger.warning("the checkpoint of step %d is loaded, but then: %s", step, error)

    def _write_manifest(self, temporary: Path, save: PendingSave, shares: Sequence[Share]) -> None:
        self._phases.point("save: before manifest")
        write_manifest(
            temporary,
            step=save.step,
            identity=self._facts.identity_at(save.step),
            files=[asdict(entry) for share in shares for entry in share.files],
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


def temporary_path(run_dir: Path, step: int) -> Path:
    """Return where a step's checkpoint is until it is committed."""
    return writing_path(RunFolder(run_dir).checkpoint(step))
