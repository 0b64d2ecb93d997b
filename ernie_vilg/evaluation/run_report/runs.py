"""Records of a training run for its page, read from the run folder.

A run that is still training, or was killed, is read as it stands; nothing is written there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.checkpoint.folder import committed_checkpoints, read_checkpoint_manifest
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.data.records.skipped_updates import read_skips
from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.charts import read_metrics
from ernie_vilg.evaluation.run_report.run_folders import short_names
from ernie_vilg.runs.recorded_settings import program_of, read_settings
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.runs.settings_drift import comparable_settings

_NAME_ONLY = ("run_dir", "tracking.")
"""Settings, or sections of them, that name a run and say nothing of what it trains."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """The log of one run, for charts."""

    label: str
    """Name that tells it apart from the others on the page."""
    entries: Sequence[Mapping[str, Any]]
    """Entries of `read_metrics`."""
    skipped: tuple[int, ...] = ()
    """Steps whose update was skipped."""
    rolled_back: tuple[int, ...] = ()
    """Steps at which the run went back to a checkpoint, because too many updates were skipped."""

    def lines(self) -> list[Mapping[str, Any]]:
        """Return the entries that are log lines of training steps."""
        return [entry for entry in self.entries if entry.get("loss") is not None]


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """One run."""

    folder: Path
    """Its run folder."""
    config: PretrainConfig | TrainImageTokenizerConfig
    """Settings of its last start."""
    manifest: Mapping[str, Any]
    """Manifest of its newest checkpoint; empty before the first one."""
    log: LoggedRun
    """Its log."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by key as JSON values, without those that only name the run."""
        return {
            key: value
            for key, value in comparable_settings(self.config).items()
            if not key.startswith(_NAME_ONLY)
        }


def read_runs(folders: Sequence[Path]) -> list[ReportedRun]:
    """Read runs of one program.

    Args:
        folders: run folders, at least one.

    Raises:
        InputError: a record is damaged or of another version, a run has no metrics yet, or the runs
            are of different programs.
    """
    programs = [program_of(folder) for folder in folders]
    for folder, program in zip(folders, programs, strict=True):
        if program != programs[0]:
            raise InputError(
                f"runs: {folders[0]} is a run of launch/{programs[0]}.py and {folder} one of "
                f"launch/{program}.py: make a page for each"
            )
    names = short_names(folders)
    return [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_log(folder: Path, label: str) -> LoggedRun:
    """Read the log of a run.

    Args:
        folder: its run folder; where it has no log, the log is empty.
        label: name of the run.

    Raises:
        InputError: a line of the metrics, or the record of the settings, is damaged.
    """
    files = RunFolder(folder)
    skipped = tuple(dict.fromkeys(skip.step for skip in read_skips(files.ledger)))
    back = rollbacks(skipped, _settings(folder).guards.max_skips) if skipped else ()
    entries = read_metrics(files.metrics)
    return LoggedRun(label=label, entries=entries, skipped=skipped, rolled_back=back)


def _read_run(folder: Path, name: str) -> ReportedRun:
    config, log = _settings(folder), read_log(folder, name)
    if not log.lines():
        raise InputError(
            f"runs: {folder} has no metrics yet: a run logs its first losses after "
            f"training.log_every={config.training.log_every} steps"
        )
    return ReportedRun(folder=folder, config=config, manifest=newest_manifest(folder), log=log)


def _settings(folder: Path) -> PretrainConfig | TrainImageTokenizerConfig:
    if program_of(folder) == "pretrain":
        return read_settings(folder, PretrainConfig)
    return read_settings(folder, TrainImageTokenizerConfig)


def rollbacks(skipped: Sequence[int], max_skips: int) -> tuple[int, ...]:
    """Return the steps at which a run went back to its last checkpoint.

    Args:
        skipped: steps whose update was skipped, ascending.
        max_skips: `guards.max_skips`: a run goes back when it has skipped more in a row.
    """
    found, in_a_row, before = [], 0, -1
    for step in skipped:
        in_a_row = in_a_row + 1 if step == before + 1 else 1
        before = step
        if in_a_row > max_skips:
            found.append(step)
            in_a_row = 0
    return tuple(found)


def newest_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run's newest checkpoint with a readable one; {} without any."""
    for checkpoint in committed_checkpoints(folder):
        try:
            return read_checkpoint_manifest(checkpoint)
        except (InputError, OSError):  # a running run may remove an old checkpoint meanwhile
            continue
    return {}
