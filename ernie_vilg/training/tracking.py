"""Where a run's metrics and pictures go: `metrics.jsonl` always, W&B if it can.

W&B must never block or stop training: every call of it is bounded or caught, and after a
failure the run goes on without it and says so. Only settings of ours are sent, never the
command line, the environment, or paths.

Source: ours, on wandb (https://docs.wandb.ai).
"""

import hashlib
import json
import logging
import netrc
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import wandb

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.files import write_bytes

METRICS_NAME = "metrics.jsonl"
LOGGED_SETTINGS = (
    "precision",
    "model",
    "objective",
    "parallelism",
    "optimizer",
    "training",
)
"""The parts of a `PretrainConfig` that leave the machine: none of them holds a path."""
_INIT_TIMEOUT_SECONDS = 30.0

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What the loop needs: somewhere to put metrics and pictures."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Record picture files by name."""

    def close(self) -> None:
        """Flush everything."""


class SilentTracker:
    """The tracker of every rank but the leader."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record nothing."""

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Record nothing."""

    def close(self) -> None:
        """Do nothing."""


class RunTracker:
    """The leader's tracker: metrics.jsonl in the run folder, and W&B."""

    def __init__(self, config: PretrainConfig, step: int) -> None:
        """Open the run's files.

        Args:
            config: the run.
            step: steps taken so far; metrics of later ones, which a crash rolled back, are
                dropped from metrics.jsonl.
        """
        run_dir = Path(config.run_dir)
        self._path = run_dir / METRICS_NAME
        keep_metrics_until(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._run = _start_wandb(config.tracking, run_dir, logged_settings(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl and send it to W&B."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        self._send(step, dict(metrics))

    def log_pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Send pictures to W&B; they already are files of the run folder."""
        if self._run is not None:
            self._send(step, {name: wandb.Image(str(path)) for name, path in pictures.items()})

    def close(self) -> None:
        """Close the file and the W&B run."""
        self._file.close()
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:  # any failure of W&B's: the run itself is done
                logger.warning("W&B did not finish: %s", error)

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.log(values, step=step)
        except Exception as error:  # any failure of W&B's must not stop training
            logger.warning("W&B failed, the run goes on without it: %s", error)
            self._run = None


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a line cut short, from a metrics file."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            is_kept = json.loads(line)["step"] <= step
        except json.JSONDecodeError:
            is_kept = False  # the writer was killed in the middle of the line
        if is_kept:
            kept.append(line + "\n")
    write_bytes(path, "".join(kept).encode())


def logged_settings(config: PretrainConfig) -> dict[str, Any]:
    """Return the settings that W&B may see."""
    settings = asdict(config)
    return {name: settings[name] for name in LOGGED_SETTINGS}


def wandb_mode(config: TrackingConfig) -> Literal["online", "offline", "disabled"]:
    """Resolve `auto`: online where a login is found, else offline."""
    if config.wandb_mode != "auto":
        return config.wandb_mode  # type: ignore[return-value]
    return "online" if _has_login() else "offline"


def _has_login() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def _start_wandb(config: TrackingConfig, run_dir: Path, settings: dict[str, Any]) -> Any:
    mode = wandb_mode(config)
    if mode == "disabled":
        return None
    # The same folder is the same run: a restart goes on with its curves.
    run_id = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    try:
        return wandb.init(
            project=config.project,
            name=config.name or run_dir.name,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=str(run_dir),
            config=settings,
            settings=wandb.Settings(
                init_timeout=_INIT_TIMEOUT_SECONDS,
                console="off",
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,  # it holds the command line
                x_disable_stats=True,
            ),
        )
    except Exception as error:  # any failure of W&B's must not stop training
        logger.warning("W&B could not start, the run goes on without it: %s", error)
        return None
