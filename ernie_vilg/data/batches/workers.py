"""Steps are read ahead in other processes.

A worker builds its own reader and reads whole steps: with W workers, worker w reads every W-th
step. The content of a step depends on the step alone, so the number of workers changes nothing but
speed. torch's DataLoader gives processes, shared memory, pinning and the detection of dead workers;
the workers come from a fork server, which has neither threads nor a CUDA context to inherit.

If a batch does not arrive in time, the error names the shard that the worker waits for: workers
write their activity into a line of memory that the rank can read.
"""

import itertools
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from torch.utils.data import DataLoader, Dataset, get_worker_info

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.system.processes import signal_at_parents_end

Item = TypeVar("Item", covariant=True)
OnWait = Callable[[str], None]

_LINE_BYTES = 512
_SHUTDOWN_SECONDS = 5
_NEWS_SECONDS = 1
_POLL_SECONDS = 5
"""Interval of the worker liveness check: workers are no children of the rank, so the kernel does
not report their death to it."""
_TORCHS_TIMEOUT = "timed out"
_SIGNALS_FOR_RANKS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a scheduler sends to every process of a job; the rank decides what they mean, and
needs batches until then."""
PRELOADED_MODULES = [
    "ernie_vilg.data.batches.worker_server",
    "__main__",
    "ernie_vilg.data.batches.token_batches",
]
"""Imports of the fork server, which every worker inherits."""

logger = logging.getLogger(__name__)


class StepReader(Protocol[Item]):
    """Reads steps; the content of a step is a pure function of its number."""

    def at(self, step: int) -> Item:
        """Return the content of a step."""

    def close(self) -> None:
        """Close files and end threads."""


def start_worker_server(loader: LoaderConfig) -> None:
    """Start the process that workers are forked from; it imports in the background.

    Args:
        loader: settings with the number of workers; 0 starts nothing.
    """
    if loader.num_workers == 0:
        return
    _context()
    # The server inherits the blocked signals. Its helper starts first: it would unblock them.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_FOR_RANKS)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class PrefetchedSteps(Generic[Item]):
    """The content of steps, read ahead of time."""

    def __init__(
        self,
        build: Callable[[OnWait], StepReader[Item]],
        loader: LoaderConfig,
        *,
        pin_memory: bool = False,
    ) -> None:
        """Prepare; workers start with the first requested step.

        Args:
            build: makes a reader, given the function that the reader calls with the name of what it
                waits for, and with "" after; must be picklable where there are workers.
            loader: number of workers, steps read ahead, and timeout.
            pin_memory: whether items, which then have a method `pin_memory`, are copied into
                pinned memory for transfers to a GPU.

        Raises:
            InputError: without workers, as the reader raises when it is built.
        """
        self._build = build
        self._loader = loader
        self._pin_memory = pin_memory
        self._own_reader = None if loader.num_workers else build(lambda what: None)
        self._items: Iterator[Any] | None = None
        self._next_step = -1
        self._doing: Any = None
        self._processes: list[Any] = []

    def at(self, step: int) -> Item:
        """Return the content of a step. Only consecutive steps are read ahead.

        Raises:
            TimeoutError: it did not arrive in time; the message names the shard being read.
            RuntimeError: a worker died; the message names the shard it was reading.
            ValueError, OSError: as the reader raises.
        """
        if self._own_reader is not None:
            item: Any = self._own_reader.at(step)
            return item.pin_memory() if self._pin_memory else item
        if self._items is None or step != self._next_step:
            self._stop_workers()
            self._start_workers(step)
        self._next_step = step + 1
        item = self._receive()
        if isinstance(item, _Failure):
            raise item.error
        return item

    @property
    def doing(self) -> str:
        """Activity of the workers, with the shards they wait for; any thread may ask."""
        if self._doing is None:
            return ""
        return "; ".join(
            f"worker {worker}: {self._line(worker)}" for worker in range(self._loader.num_workers)
        )

    def close(self) -> None:
        """End the workers, and close the reader of this process."""
        self._stop_workers()
        if self._own_reader is not None:
            self._own_reader.close()

    def _start_workers(self, first_step: int) -> None:
        start_worker_server(self._loader)
        context = _context()
        self._doing = context.RawArray("c", _LINE_BYTES * self._loader.num_workers)
        before = set(multiprocessing.active_children())
        self._items = iter(
            DataLoader(
                _Steps(self._build, self._doing),
                batch_size=None,
                sampler=itertools.count(first_step),
                num_workers=self._loader.num_workers,
                prefetch_factor=self._loader.prefetch_steps,
                timeout=min(self._loader.timeout_seconds, _POLL_SECONDS),
                pin_memory=self._pin_memory,
                collate_fn=_unchanged,
                worker_init_fn=_start_worker,
                multiprocessing_context=context,
            )
        )
        self._processes = [
            process for process in multiprocessing.active_children() if process not in before
        ]

    def _receive(self) -> Any:
        deadline = time.monotonic() + self._loader.timeout_seconds
        problem = ""
        while self._items is not None:
            # Drop the error at once: its frames hold the workers' queues and semaphores.
            try:
                return next(self._items)
            except (RuntimeError, OSError, EOFError) as error:  # half a message of a dead worker
                problem = str(error)
            is_timeout = _TORCHS_TIMEOUT in problem
            if self._dead_workers(0 if is_timeout else _NEWS_SECONDS) or not is_timeout:
                break
            if time.monotonic() >= deadline:
                break
        raise self._failure(problem)

    def _failure(self, problem: str) -> Exception:
        """End the workers and return the error that names their activity."""
        doing = self.doing
        dead = self._dead_workers(0)
        self._kill_workers()
        if dead:
            return RuntimeError(
                f"data worker with pid {dead} ended unexpectedly ({doing}). Look for the kernel's "
                "out-of-memory killer (dmesg); the same command resumes from the last checkpoint"
            )
        if _TORCHS_TIMEOUT in problem:
            return TimeoutError(
                f"no batch for {self._loader.timeout_seconds} s (loader.timeout_seconds): {doing}. "
                "Look at the disk or network that holds the shard, or allow more time"
            )
        return RuntimeError(f"a data worker failed ({doing}): {problem}")

    def _dead_workers(self, wait_seconds: float) -> list[int]:
        """Return the pids of dead workers; the fork server reports a death a moment later."""
        sentinels = [process.sentinel for process in self._processes]
        multiprocessing.connection.wait(sentinels, wait_seconds)
        return [process.pid for process in self._processes if not process.is_alive()]

    def _line(self, worker: int) -> str:
        start = worker * _LINE_BYTES
        line: bytes = self._doing[start : start + _LINE_BYTES].split(b"\0")[0]
        return line.decode("utf-8", "replace") or "starting"

    def _stop_workers(self) -> None:
        """End the workers; kill those that do not end in time."""
        self._items = None  # torch tells the workers to end
        deadline = time.monotonic() + _SHUTDOWN_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                logger.warning("data worker %d does not end, killing it", process.pid)
        self._kill_workers()

    def _kill_workers(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._processes = []
        self._items = None


class _Failure:
    """A worker's error on its way to the rank; torch would pass on only its text."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def pin_memory(self) -> "_Failure":
        """Return itself: it holds no tensors."""
        return self


class _Steps(Dataset[Any]):
    """Steps as a data set, on the worker's side."""

    def __init__(self, build: Callable[[OnWait], StepReader[Any]], doing: Any) -> None:
        self._build = build
        self._doing = doing
        self._reader: StepReader[Any] | None = None

    def __getitem__(self, step: int) -> Any:
        try:
            self._write(f"step {step}")
            if self._reader is None:
                self._reader = self._build(
                    lambda what: self._write(f"reading {what}" if what else "decoding")
                )
            item = self._reader.at(step)
            self._write("idle")
        except (ValueError, OSError) as error:
            return _Failure(error)
        return item

    def _write(self, what: str) -> None:
        worker = get_worker_info()
        assert worker is not None
        line = what.encode()[: _LINE_BYTES - 1]
        start = worker.id * _LINE_BYTES
        self._doing[start : start + _LINE_BYTES] = line.ljust(_LINE_BYTES, b"\0")


def _context() -> Any:
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    return context


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker_id: int) -> None:
    # A worker ends when its rank ends it, or when its rank is gone.
    for number in _SIGNALS_FOR_RANKS:
        signal.signal(number, signal.SIG_IGN)
    # torch watches the fork server instead of the rank. The server may live on: if it serves other
    # ranks too, or if the rank ends normally. So the worker watches its rank itself.
    signal_at_parents_end(signal.SIGKILL)
    threading.Thread(target=_end_with_rank, daemon=True).start()


def _end_with_rank() -> None:
    rank = multiprocessing.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)
