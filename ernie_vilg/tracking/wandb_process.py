"""Starts the process that talks to W&B, hears its complaints, and ends it.

Nothing here waits for it but the end, and that is bounded.

Source: ours.
"""

import hashlib
import json
import logging
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

LOG_NAME = "wandb.log"
_PROGRAM = "ernie_vilg.tracking.wandb_follower"
FINISH = "finish"
"""What we write before we close its input, if it comes to that."""
WARNING = "warning: "
"""How lines of its log begin that are meant for ours."""
_REAP_SECONDS = 2.0
"""Beyond its own limit, before it is killed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What the follower needs to know, said once, as one line of JSON."""

    run_dir: str
    """The run's folder."""
    metrics: str
    """Name of the file in it to follow."""
    mode: str
    """auto, online or offline."""
    project: str
    """W&B project."""
    name: str
    """W&B run name."""
    init_seconds: float = 30.0
    """How long the server may take to begin the run; it is kept offline then."""
    finish_seconds: float
    """From the end of its input to its own end, at most."""
    settings: dict[str, Any]
    """All that W&B may know of the run's settings."""

    @property
    def run_id(self) -> str:
        """The same folder is the same run: a restart goes on with its curves."""
        return hashlib.sha256(str(Path(self.run_dir).resolve()).encode()).hexdigest()[:16]


class WandbProcess:
    """`ernie_vilg.tracking.wandb_follower` in a process of its own."""

    def __init__(self, orders: Orders) -> None:
        """Start it; where that fails, warn."""
        self._limit_seconds = orders.finish_seconds + _REAP_SECONDS
        self._log = Path(orders.run_dir) / LOG_NAME
        self._log_position = self._log.stat().st_size if self._log.exists() else 0
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,  # out of reach of the terminal's Ctrl-C
                )
            self._write(json.dumps(asdict(orders)) + "\n")
        except OSError as error:
            logger.warning("W&B could not start, the run goes on without it: %s", error)

    def check(self) -> None:
        """Repeat what it has complained of, and say once that it has ended; never waits."""
        process = self._process
        if process is None:
            return
        has_ended = process.poll() is not None
        has_said_why = self._repeat_warnings()
        if has_ended:
            if not has_said_why:
                logger.warning("W&B has ended, the run goes on without it: see %s", self._log)
            self._let_go()

    def close(self) -> None:
        """Let it send what there is, and end it after `finish_seconds` at the latest."""
        process = self._process
        if process is None:
            return
        with suppress(OSError):
            self._write(FINISH)
        self._close_input()
        try:
            process.wait(self._limit_seconds)
        except subprocess.TimeoutExpired:
            self._kill()
        self._repeat_warnings()
        self._let_go()

    def _write(self, text: str) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.flush()

    def _repeat_warnings(self) -> bool:
        """Say in our log what it says in its own; return whether there was something."""
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

    def _kill(self) -> None:
        process = self._process
        assert process is not None
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
            for member in (*family, process):
                with suppress(psutil.NoSuchProcess):
                    member.kill()
        process.wait()
        logger.warning("W&B hung and was ended: `wandb sync` sends what lies in wandb/")

    def _close_input(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def _let_go(self) -> None:
        self._close_input()
        self._process = None
