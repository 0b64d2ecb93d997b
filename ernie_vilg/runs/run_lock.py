"""One run per run folder: a second start is refused and told who holds the folder.

The leader keeps `lock.json` in the run folder and increments a beat in it every few seconds. A
start that finds the file asks, in this order:

- Was it written on this machine? Then the kernel knows whether its process still runs.
- Was it written by this Slurm job, before Slurm restarted the job? Then its process has ended.
- Otherwise, does the beat change while this start watches? If not, the holder has ended.

The start measures the watch by its own monotonic clock. It compares no wall clocks.

Source: ours. A lease with a heartbeat, because file locks do not outlast a mount and do not work
between machines on some file systems.
"""

import logging
import os
import socket
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.schema import from_json
from ernie_vilg.errors import InputError
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_json
from ernie_vilg.storage.json_files import MOST_BYTES, parse_json, read_bounded
from ernie_vilg.storage.locks import NO_LOCKS
from ernie_vilg.system.processes import ProcessMark, is_running, mark_process, this_machine

_GUARD_SECONDS = 5.0
_POLL_SECONDS = 0.25
_SETTLING_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The content of a lock file: who holds the run folder."""

    launch_id: str
    """Unique id of this start of the run."""
    host: str
    """Name of the leader's machine, for people."""
    machine: str
    """Id of the machine that `process_id` belongs to."""
    process_id: int
    """Process id of the leader."""
    start_ticks: int
    """Start time of the leader, which tells it from a later process with the same id."""
    job: str | None
    """Number of the leader's Slurm job, if it has one."""
    job_restarts: int
    """Restarts of that job by Slurm so far."""
    beat: int = 0
    """Counter that increases while the run lives."""

    def __str__(self) -> str:
        """Name the holder, for people."""
        if not self.launch_id:
            return "something unreadable"
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.process_id} on {self.host}{job}"


@dataclass(frozen=True, kw_only=True)
class _Sighting:
    """Content of the lock file at some moment."""

    holder: Holder
    modified: int
    """Modification time of the file, compared with another sighting's only."""


class _State(Enum):
    FREE = "free"
    HELD = "held"
    UNKNOWN = "unknown"


class RunLock:
    """A run's lock on its folder. The leader takes it; the other ranks do nothing."""

    def __init__(
        self,
        run_dir: Path,
        launch: Launch,
        *,
        beat_seconds: float = 3.0,
        stale_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to take the lock; entering the block takes it.

        Args:
            run_dir: the run's folder, on a file system that all machines see.
            launch: this process's rank and job.
            beat_seconds: interval of the beats.
            stale_seconds: time without a beat after which the holder counts as ended.
            clock: monotonic clock in seconds.
        """
        self._folder = RunFolder(run_dir)
        self._path = self._folder.lock
        self._launch = launch
        self._beat_seconds = beat_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._mine = _describe_this_process(launch)
        self._is_lost = False
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="run lock", daemon=True)

    @property
    def is_lost(self) -> bool:
        """Whether another run has taken the lock: this one must stop and write nothing."""
        return self._is_lost

    def __enter__(self) -> "RunLock":
        """Take the lock.

        Raises:
            InputError: another run holds it; the message names its process, host and job.
        """
        if self._launch.is_leader:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self._beats.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the lock, if this run still holds it."""
        if not self._launch.is_leader:
            return
        self._ended.set()
        self._beats.join()
        try:
            with self._guarded():
                if self._is_mine(self._read()):
                    self._path.unlink()
        except (OSError, InputError) as problem:
            logger.warning("%s is left behind: %s", self._path, problem)

    def _acquire(self) -> None:
        first: _Sighting | None = None
        first_seen = 0.0
        while True:
            with self._guarded() as is_guarded:
                seen = self._read()
                state = self._judge(seen, first, self._clock() - first_seen)
                if state is _State.FREE:
                    self._take_from(seen)
            if seen is not None and state is _State.HELD:
                raise InputError(self._refusal(seen.holder))
            if state is _State.FREE:
                if is_guarded or self._has_settled():
                    return
            elif seen is not None and not _is_same_launch(seen, first):
                first, first_seen = seen, self._clock()
                logger.info(
                    "%s names %s, which cannot be checked from here: watching its beat for %g s",
                    self._path,
                    seen.holder,
                    self._stale_seconds,
                )
            time.sleep(_POLL_SECONDS)

    def _judge(self, seen: _Sighting | None, first: _Sighting | None, watched: float) -> _State:
        """Judge whether the folder is free.

        Args:
            seen: the lock file now.
            first: the lock file when the watch began.
            watched: seconds since then.
        """
        if seen is None:
            return _State.FREE
        holder, mine = seen.holder, self._mine
        if holder.machine == mine.machine:
            mark = ProcessMark(process_id=holder.process_id, start_ticks=holder.start_ticks)
            return _State.HELD if is_running(mark) else _State.FREE
        is_same_job = holder.job is not None and holder.job == mine.job
        if is_same_job and holder.job_restarts < mine.job_restarts:
            return _State.FREE
        if not _is_same_launch(seen, first):
            return _State.UNKNOWN
        if seen != first:
            return _State.HELD
        return _State.FREE if watched >= self._stale_seconds else _State.UNKNOWN

    def _take_from(self, seen: _Sighting | None) -> None:
        if seen is not None:
            logger.warning("%s has ended: taking over the run folder", seen.holder)
        write_json(self._path, asdict(self._mine))

    def _has_settled(self) -> bool:
        """Return whether this start wrote last, on a file system without locks."""
        time.sleep(_SETTLING_SECONDS)
        return self._is_mine(self._read())

    def _is_mine(self, seen: _Sighting | None) -> bool:
        return seen is not None and seen.holder.launch_id == self._mine.launch_id

    def _refusal(self, holder: Holder) -> str:
        return (
            f"run_dir={self._path.parent} is in use by {holder}: wait for it, end it (touch "
            f"{self._folder.stop} stops a pretraining run at its next step), or name another "
            "run_dir"
        )

    def _beat(self) -> None:
        mine, was_written = self._mine, True
        while not self._ended.wait(self._beat_seconds):
            mine = replace(mine, beat=mine.beat + 1)
            try:
                with self._guarded():
                    seen = self._read()
                    if seen is not None and not self._is_mine(seen):
                        self._is_lost = True
                        logger.error("%s has taken over %s", seen.holder, self._path.parent)
                        return
                    self._show_life(mine)
                was_written = True
            except (OSError, ValueError) as error:
                if was_written:
                    logger.warning("the beat in %s could not be written: %s", self._path, error)
                was_written = False

    def _show_life(self, mine: Holder) -> None:
        try:
            write_json(self._path, asdict(mine))
        except OSError:
            os.utime(self._path)  # all that can be done on a full disk

    def _read(self) -> _Sighting | None:
        """Return the content of the lock file, None if there is none."""
        try:
            modified = self._path.stat().st_mtime_ns
            content = read_bounded(self._path, most_bytes=MOST_BYTES)
        except FileNotFoundError:
            return None
        name = str(self._path)
        try:
            holder = from_json(parse_json(content, name), Holder, name)
        except InputError:  # another version's, or damaged: watched like any other
            holder = replace(
                self._mine,
                launch_id="",
                host="a host",
                machine="",
                job=None,
                beat=zlib.crc32(content),
            )
        return _Sighting(holder=holder, modified=modified)

    @contextmanager
    def _guarded(self) -> Iterator[bool]:
        """Hold the guard, so that no other start reads or writes the lock file meanwhile.

        Yields whether it is held: false on a file system without file locks.

        Raises:
            InputError: another process has held the guard for too long.
        """
        guard = FileLock(self._folder.lock_guard, fallback_to_soft=False)
        try:
            guard.acquire(timeout=_GUARD_SECONDS)
        except Timeout as error:
            raise InputError(
                f"{guard.lock_file} has been held for {_GUARD_SECONDS:g} s: see which process "
                "hangs (fuser names it), and end it"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            yield False
            return
        try:
            yield True
        finally:
            guard.release()


def _is_same_launch(seen: _Sighting, first: _Sighting | None) -> bool:
    return first is not None and seen.holder.launch_id == first.holder.launch_id


def _describe_this_process(launch: Launch) -> Holder:
    mark = mark_process(os.getpid())
    assert mark is not None, "this process runs"
    return Holder(
        launch_id=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=this_machine(),
        process_id=mark.process_id,
        start_ticks=mark.start_ticks,
        job=launch.job,
        job_restarts=launch.job_restarts,
    )
