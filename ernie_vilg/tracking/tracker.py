"""Trackers: they record a run's metrics and pictures in `metrics.jsonl`, W&B and TensorBoard.

Training writes lines to a file. A separate process follows the file and talks to W&B
(`ernie_vilg.tracking.wandb_follower`), so that neither W&B nor the network can block or stop
training. It gets the settings of an allow-list, never the command line, the environment, or paths.
TensorBoard's event files (`ernie_vilg.tracking.event_files`) are written beside the lines.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ernie_vilg.config.run import RunConfig
from ernie_vilg.config.schema import from_json, tracked_settings
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes
from ernie_vilg.storage.jsonl import LineFile, read_lines, warn_of_unusable
from ernie_vilg.tracking.event_files import EventFiles, check_tensorboard
from ernie_vilg.tracking.wandb_process import Orders, WandbProcess

METRICS_NAME = "metrics.jsonl"


class Tracker(Protocol):
    """Records metrics and pictures."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of a step: a number, a list or null by name."""

    def log_pictures(
        self, step: int, pictures: Mapping[str, Path], captions: Mapping[str, str] | None = None
    ) -> None:
        """Record picture files of the run folder by name, and the captions below them."""

    def go_back(self, step: int) -> None:
        """Drop the records of later steps: training repeats them."""

    def close(self) -> None:
        """Write everything and close."""


class SilentTracker:
    """The tracker of every rank but the leader."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record nothing."""

    def log_pictures(
        self, step: int, pictures: Mapping[str, Path], captions: Mapping[str, str] | None = None
    ) -> None:
        """Record nothing."""

    def go_back(self, step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class RunTracker:
    """The leader's tracker: metrics.jsonl in the run folder, the W&B process that follows it, and
    TensorBoard's event files.

    A line holds a step and its metrics or pictures; a step may have several lines. Neither W&B nor
    a full disk makes a call raise.
    """

    def __init__(self, config: RunConfig, step: int) -> None:
        """Open the run's files.

        Args:
            config: the run.
            step: steps taken; the metrics of later steps, which a crash rolled back, are
                dropped from metrics.jsonl.
        """
        self._run_dir = Path(config.run_dir)
        keep_metrics_until(self._run_dir / METRICS_NAME, step)
        self._lines = LineFile(self._run_dir / METRICS_NAME)
        self._wandb = None if config.tracking.wandb_mode == "disabled" else _start_wandb(config)
        self._events: EventFiles | None = None
        if config.tracking.tensorboard:
            self._events = EventFiles(self._run_dir, self._run_dir / METRICS_NAME, step)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self._append({"step": step, **metrics})

    def log_pictures(
        self, step: int, pictures: Mapping[str, Path], captions: Mapping[str, str] | None = None
    ) -> None:
        """Append a line with the pictures' files to metrics.jsonl."""
        captions = captions or {}
        self._append(
            {
                "step": step,
                "pictures": {
                    name: {
                        "file": path.relative_to(self._run_dir).as_posix(),
                        "caption": captions.get(name),
                    }
                    for name, path in pictures.items()
                },
            }
        )

    def go_back(self, step: int) -> None:
        """Drop the lines of later steps. W&B keeps them and gets no repeated step: repeated values
        are the same, except for times.
        """
        self._lines.close()
        keep_metrics_until(self._run_dir / METRICS_NAME, step)
        self._lines = LineFile(self._run_dir / METRICS_NAME)
        if self._events is not None:
            self._events.go_back(step)

    def close(self) -> None:
        """Close the files, and W&B within `tracking.finish_seconds`."""
        self._lines.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.close()

    def _append(self, entry: dict[str, Any]) -> None:
        self._lines.append(entry)
        if self._wandb is not None:
            self._wandb.check()
        if self._events is not None:
            self._events.add(entry)


def check_trackers(config: TrackingConfig) -> None:
    """Check that the packages of the chosen trackers are installed.

    Raises:
        InputError: one is not.
    """
    if config.tensorboard:
        check_tensorboard()


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a truncated last line, from a metrics file.

    Other lines without a step stay, with a warning.
    """
    if not os.path.lexists(path):
        return
    kept, problems = [], []
    for line in read_lines(path):
        try:
            is_kept = step_of_entry(line.require(), line.name) <= step
        except InputError as error:
            is_kept = line.is_whole
            if is_kept:
                problems.append(str(error))
        if is_kept:
            kept.append(line.text + b"\n")
    warn_of_unusable(path, problems)
    write_bytes(path, b"".join(kept))


def step_of_entry(entry: Mapping[str, Any], name: str) -> int:
    """Return the step of a line of metrics.

    Raises:
        InputError: the line has none; the message begins with `name`.
    """
    return from_json(entry.get("step"), int, f"{name}: step")


def _start_wandb(config: RunConfig) -> WandbProcess:
    tracking = config.tracking
    return WandbProcess(
        Orders(
            run_dir=config.run_dir,
            metrics=METRICS_NAME,
            mode=tracking.wandb_mode,
            project=tracking.project,
            name=tracking.name_of(config.run_dir),
            group=tracking.group or tracking.experiment,
            job_type=tracking.job_type,
            tags=tracking.tags,
            notes=tracking.notes,
            system_statistics=tracking.system_statistics,
            finish_seconds=tracking.finish_seconds,
            settings=tracked_settings(config),
        )
    )
