"""The process that sends a run's metrics to W&B; none of its failures reaches the run.

It follows `metrics.jsonl` of the run folder as training writes it. It records the last step that it
sent: steps that training repeats after a crash are sent once. It ends when its standard input does,
which training closes, or the kernel if training was killed.

    python -m ernie_vilg.tracking.wandb_follower < orders.json

Source: wandb (https://docs.wandb.ai).
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb
from filelock import FileLock

from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import object_of, parse_json, read_object
from ernie_vilg.system.processes import kill_descendants
from ernie_vilg.tracking.tracker import step_of_entry
from ernie_vilg.tracking.values import figures_of, pictures_of
from ernie_vilg.tracking.wandb_login import has_login
from ernie_vilg.tracking.wandb_process import FINISH, WARNING, Orders

_SENT_NAME = "wandb_sent.json"
_LOCK_NAME = ".wandb_follower.lock"
_ORPHAN_SECONDS = 5.0
"""Longest time from the end of a killed run to the end of this process."""
_POLL_SECONDS = 0.5
_A_LINE = "a line"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Mode = Literal["online", "offline"]


class Lifeline(threading.Thread):
    """Waits for the end of the input, and ends this process some time after it."""

    def __init__(self, finish_seconds: float) -> None:
        super().__init__(daemon=True)
        self.is_closed = threading.Event()
        self._finish_seconds = finish_seconds

    def run(self) -> None:
        """Wait for the end of the input."""
        is_orderly = sys.stdin.read().startswith(FINISH)
        self.is_closed.set()
        time.sleep(self._finish_seconds if is_orderly else _ORPHAN_SECONDS)
        _warn("W&B did not take everything in time: `wandb sync` sends the files in wandb/")
        _end(1)


class Follower:
    """Reads each line of a growing file once."""

    def __init__(self, path: Path) -> None:
        """Open the file at its start."""
        self._path = path
        self._file = path.open("rb")
        self._rest = b""
        self._has_warned = False

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def was_replaced(self) -> bool:
        """Return whether the file was replaced, as by a rollback; the new one is then read."""
        with suppress(OSError):
            if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                self._file.close()
                self._file, self._rest = self._path.open("rb"), b""
                return True
        return False

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the entries of the complete lines added since the last call."""
        added = self._rest + self._file.read()
        whole, self._rest = added[: added.rfind(b"\n") + 1], added[added.rfind(b"\n") + 1 :]
        entries = []
        for line in whole.split(b"\n"):
            try:
                entry = object_of(parse_json(line, _A_LINE), _A_LINE) if line.strip() else {}
                if "step" in entry:
                    step_of_entry(entry, _A_LINE)
                    entries.append(entry)
            except InputError as error:
                if not self._has_warned:
                    _warn(f"{self._path} has lines without metrics, not sent to W&B: {error}")
                self._has_warned = True
        return entries


class SentMark:
    """Last step that was sent to W&B, over all launches of a run."""

    def __init__(self, run_dir: Path, run_id: str) -> None:
        self._path = run_dir / _SENT_NAME
        self._run_id = run_id
        self.step = -1
        with suppress(OSError, InputError):
            mark = read_object(self._path)
            if mark.get("run_id") == run_id:
                self.step = step_of_entry(mark, str(self._path))

    def move(self, step: int) -> None:
        """Record a step, if it is a later one."""
        if step > self.step:
            self.step = step
            write_json(self._path, {"run_id": self._run_id, "step": step})


def main() -> None:
    """Follow the metrics until the input ends; exit with 1 if W&B failed."""
    for number in _SIGNALS:  # a scheduler signals all processes of a job
        signal.signal(number, signal.SIG_IGN)
    orders = from_json(parse_json(sys.stdin.readline(), "the orders"), Orders, "the orders")
    lifeline = Lifeline(orders.finish_seconds)
    lifeline.start()
    exit_code = 0
    try:
        # The follower of a killed launch may still send its last lines.
        with FileLock(Path(orders.run_dir) / _LOCK_NAME, timeout=_ORPHAN_SECONDS + 5):
            follow(orders, lifeline.is_closed)
    except Exception as error:  # any failure of W&B
        _warn(f"W&B failed, the run goes on without it: {described(error)}")
        exit_code = 1
    _end(exit_code)


def follow(orders: Orders, is_closed: threading.Event) -> None:
    """Send lines as training writes them, until the event and then to the end of the file."""
    run_dir = Path(orders.run_dir)
    mark = SentMark(run_dir, orders.run_id)
    sent_before = mark.step
    with Follower(run_dir / orders.metrics) as lines:
        run = start_run(orders)
        is_last = False
        while not is_last:
            is_last = is_closed.wait(_POLL_SECONDS)
            if lines.was_replaced():
                sent_before = mark.step
            entries = [entry for entry in lines.new_lines() if entry["step"] > sent_before]
            for entry in entries:
                run.log(values_of(entry, run_dir), step=entry["step"])
            if entries:
                mark.move(entries[-1]["step"])
    run.finish()
    wandb.teardown()  # writes the last records to the file


def start_run(orders: Orders) -> Any:
    """Return the W&B run, offline if the server cannot be reached."""
    mode = wandb_mode(orders.mode)
    if mode == "online":
        try:
            return _init(orders, mode)
        except Exception as error:  # any failure of W&B or the network
            _warn(
                f"W&B cannot be reached, the run is kept in wandb/ for `wandb sync`: "
                f"{described(error)}"
            )
            wandb.teardown()  # the run's id is taken until its service has ended
    return _init(orders, "offline")


def values_of(entry: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Convert a line of the metrics file to W&B's values.

    A picture becomes W&B's own, with its caption.
    """
    values: dict[str, Any] = dict(figures_of(entry))
    for picture in pictures_of(entry, run_dir):
        values[picture.name] = wandb.Image(str(picture.path), caption=picture.caption)
    return values


def wandb_mode(mode: str) -> Mode:
    """Resolve `auto`: online if a login is found, else offline."""
    is_online = mode == "online" or (mode == "auto" and has_login())
    return "online" if is_online else "offline"


def described(error: Exception) -> str:
    """Return an error on one line, with secrets masked."""
    text = re.sub(r"://[^/@\s]*@", "://", f"{type(error).__name__}: {error}")
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search(r"KEY|SECRET|TOKEN|PASSWORD", name, re.IGNORECASE):
            text = text.replace(value, "***")
    return " ".join(text.split())[:500]


def _init(orders: Orders, mode: Mode) -> Any:
    return wandb.init(
        project=orders.project,
        name=orders.name,
        group=orders.group,
        job_type=orders.job_type,
        tags=orders.tags,
        notes=orders.notes,
        id=orders.run_id,
        resume="allow",
        mode=mode,
        dir=orders.run_dir,
        config=orders.settings,
        settings=wandb.Settings(
            init_timeout=orders.init_seconds,
            # It ends in good order before this process does.
            finish_timeout=0.7 * orders.finish_seconds,
            console="off",
            silent=True,
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,  # it holds the command line
            x_disable_stats=not orders.system_statistics,
            x_stats_pid=os.getppid(),  # training's process, not this one
            x_save_requirements=False,
        ),
    )


def _end(exit_code: int) -> None:
    """End at once, with W&B's service; its threads may wait for a server for ever."""
    kill_descendants(os.getpid())
    os._exit(exit_code)


def _warn(text: str) -> None:
    """Write a line that the log of the run repeats."""
    print(f"{WARNING}{text}", file=sys.stderr, flush=True)  # noqa: T201, this is a program


if __name__ == "__main__":
    main()
