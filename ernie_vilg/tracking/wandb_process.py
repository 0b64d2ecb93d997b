"""The process that sends metrics to W&B, seen from training: started, watched and ended.

Training waits for it only at the end of the run, and there for a limited time.
"""

import hashlib
import json
import logging
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.system.processes import kill_descendants

LOG_NAME = "wandb.log"
_PROGRAM = "ernie_vilg.tracking.wandb_follower"
FINISH = "finish"
"""Last message to the process, before the end of its input; a killed run sends none."""
WARNING = "warning: "
"""Prefix of the lines in its log that the log of the run repeats."""
_REAP_SECONDS = 2.0
"""Time beyond the limit of the process, after which it is killed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Orders:
    """Settings of the process, sent to it once as one line of JSON."""

    run_dir: str
    """Folder of the run."""
    metrics: str
    """Name of the metrics file in it."""
    mode: str
    """auto, online or offline."""
    project: str
    """W&B project."""
    name: str
    """W&B run name."""
    group: str | None = None
    """W&B group."""
    job_type: str | None = None
    """W&B job type."""
    tags: tuple[str, ...] = ()
    """W&B tags."""
    notes: str | None = None
    """W&B notes."""
    system_statistics: bool = False
    """Whether W&B samples the machine's processors, memory, disk, network and GPUs."""
    init_seconds: float = 30.0
    """Longest wait for the server at the start; after it the run is kept offline."""
    finish_seconds: float
    """Longest time from the end of the input to the end of the process."""
    settings: dict[str, Any]
    """Settings of the run that W&B may see."""

    @property
    def run_id(self) -> str:
        """W&B run id, made of the folder's path: a restart continues the same curves."""
        return hashlib.sha256(str(Path(self.run_dir).resolve()).encode()).hexdigest()[:16]


class WandbProcess:
    """`ernie_vilg.tracking.wandb_follower` in a process of its own."""

    def __init__(self, orders: Orders) -> None:
        """Start it; a failure is a warning."""
        self._limit_seconds = orders.finish_seconds + _REAP_SECONDS
        self._log = Path(orders.run_dir) / LOG_NAME
        self._log_position = self._log.stat().st_size if self._log.exists() else 0
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _PROGRAM],
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,  # the terminal's Ctrl-C does not reach it
                )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(asdict(orders)).encode() + b"\n")
        except OSError as error:
            logger.warning("W&B could not start, the run goes on without it: %s", error)

    def check(self) -> None:
        """Repeat its warnings, and warn once if it has ended; never waits."""
        process = self._process
        if process is None:
            return
        has_ended = process.poll() is not None
        has_warned = self._repeat_warnings()
        if has_ended:
            if not has_warned:
                logger.warning("W&B has ended, the run goes on without it: see %s", self._log)
            process.communicate()  # closes its input
            self._process = None

    def close(self) -> None:
        """Let it send the rest, and end it after `finish_seconds` at the latest."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(FINISH.encode(), self._limit_seconds)
        except subprocess.TimeoutExpired:
            kill_descendants(process.pid)
            process.kill()
            process.communicate()
            logger.warning("W&B hung and was ended: `wandb sync` sends the files in wandb/")
        self._repeat_warnings()

    def _repeat_warnings(self) -> bool:
        """Log the warnings added to its log; return whether there were any."""
        try:
            if self._log.stat().st_size == self._log_position:
                return False
            with self._log.open("rb") as file:
                file.seek(self._log_position)
                added = file.read()
        except OSError:
            return False  # the log was removed
        whole = added[: added.rfind(b"\n") + 1]
        self._log_position += len(whole)
        lines = whole.decode(errors="replace").splitlines()
        warnings = [line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)]
        for warning in warnings:
            logger.warning("%s", warning)
        return bool(warnings)
