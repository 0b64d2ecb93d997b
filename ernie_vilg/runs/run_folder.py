"""The run folder: the path of each file that a run keeps.

    run.json                      settings of the last start
    changes.jsonl                 settings that changed between two starts, one a line
    lock.json, .lock.guard        the process that holds the folder
    checkpoints/step_<step>/      a committed checkpoint; checkpoint.folder names its files
    checkpoints/latest.json       the newest checkpoint, for people
    universal/step_<step>/        that checkpoint consolidated, for another layout
    quarantine.jsonl              samples to skip, written by people
    ledger/                       the samples of each step; data.records names its files
    metrics.jsonl                 metrics, one line per logged step
    validation.jsonl              held-out losses, one line per validation
    samples/step_<step>.png       pictures drawn from the captions in step_<step>.jsonl
    health/step_<step>.png        round trips; the figures are in step_<step>.json
    reports/                      stacks and collectives of ranks that hung
    explained/step_<step>.html    page of launch/explain_step.py
    profiles/<steps>-rank_<rank>.json.gz    trace of some steps; .memory.pickle: of a GPU's memory
    plan.json, measured.json      predicted and measured memory and time
    STOP                          request to stop, made by people; then STOP.honoured
    stopped.json                  reason and step of the last stop
    wandb/, wandb.log, wandb_sent.json, .wandb_follower.lock    of W&B; tracking names them
    tensorboard/                  TensorBoard's event files; tracking names them

A run of the image tokenizer also has:

    weights/                      the tokenizer of the newest checkpoint
    metrics.json                  figures of the last evaluation
    reconstructions/step_<step>.png    pictures before and after, at each evaluation

Modules above this one take each path from `RunFolder`; modules below get it as an argument.
"""

import re
from pathlib import Path
from typing import Final

from ernie_vilg.tracking.tracker import METRICS_NAME

_STEP_NAME = re.compile(r"step_(\d{8,})")


class RunFolder:
    """The paths of one run's files; creates and reads none."""

    def __init__(self, path: Path) -> None:
        self.settings: Final = path / "run.json"
        self.changes: Final = path / "changes.jsonl"
        self.lock: Final = path / "lock.json"
        self.lock_guard: Final = path / ".lock.guard"
        self.checkpoints: Final = path / "checkpoints"
        self.checkpoint_pointer: Final = self.checkpoints / "latest.json"
        self.consolidated_checkpoints: Final = path / "universal"
        self.quarantine: Final = path / "quarantine.jsonl"
        self.ledger: Final = path / "ledger"
        self.metrics: Final = path / METRICS_NAME
        self.validations: Final = path / "validation.jsonl"
        self.reports: Final = path / "reports"
        self.plan: Final = path / "plan.json"
        self.measured: Final = path / "measured.json"
        self.stop: Final = path / "STOP"
        self.honoured_stop: Final = path / "STOP.honoured"
        self.stopped: Final = path / "stopped.json"
        self.tokenizer_weights: Final = path / "weights"
        self.tokenizer_figures: Final = path / "metrics.json"
        self._path = path

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.checkpoints / step_name(step)

    def consolidated_checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, consolidated."""
        return self.consolidated_checkpoints / step_name(step)

    def samples(self, step: int) -> Path:
        """Return the file of a step's samples."""
        return self._path / "samples" / step_name(step, ".png")

    def all_samples(self) -> list[Path]:
        """Return the files of samples that exist, the first step first."""
        return sorted(self.samples(0).parent.glob("step_*.png"))

    def reconstructions(self, step: int) -> Path:
        """Return the grid of an image tokenizer's reconstructions at a step."""
        return self._path / "reconstructions" / step_name(step, ".png")

    def all_reconstructions(self) -> list[Path]:
        """Return the grids of reconstructions that exist, the first step first."""
        return sorted(self.reconstructions(0).parent.glob("step_*.png"))

    def health(self, step: int) -> Path:
        """Return the picture of a step's round trips."""
        return self._path / "health" / step_name(step, ".png")

    def profile(self, first: int, last: int, rank: int) -> Path:
        """Return the trace that a rank writes of some steps."""
        return self._path / "profiles" / f"{_steps_name(first, last, rank)}.json.gz"

    def profile_of_memory(self, first: int, last: int, rank: int) -> Path:
        """Return the snapshot of a GPU's memory that lies beside the trace."""
        return self.profile(first, last, rank).with_name(
            f"{_steps_name(first, last, rank)}.memory.pickle"
        )

    def explanation(self, step: int) -> Path:
        """Return the page that explains a step."""
        return self._path / "explained" / step_name(step, ".html")

    def hang_report(self, step: int, rank: int) -> Path:
        """Return the file in which a rank describes a hang after `step` steps."""
        return self.reports / f"hang-{step_name(step)}-rank_{rank:05d}.txt"


def _steps_name(first: int, last: int, rank: int) -> str:
    return f"{step_name(first)}-{last:08d}-rank_{rank:05d}"


def step_name(step: int, suffix: str = "") -> str:
    """Return the name of a step's file or folder."""
    return f"step_{step:08d}{suffix}"


def step_in(name: str) -> int | None:
    """Return the step that `step_name` makes a name of, None for another name."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match and name == step_name(int(match[1])) else None
