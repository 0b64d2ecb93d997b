"""A function mapped over many tasks on several processes, with the results in order.

Processes are spawned, not forked: a fork copies locks that other threads may hold. At most two
tasks per process are in progress, so a long list of tasks costs no memory. Processes end with the
program that started them, even if it is killed: otherwise they would go on writing into the files
of a restarted program.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self, TypeVar

from ernie_vilg.errors import InputError
from ernie_vilg.system.processes import signal_at_parents_end

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_PER_WORKER = 2  # one in progress, the next one waiting


def map_in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    num_workers: int,
    initializer: Callable[..., None] | None = None,
    initializer_arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yield `function(task)` for every task, in the order of the tasks.

    Args:
        function: defined at the top level of a module, so that a process can import it.
        tasks: values that can be pickled.
        num_workers: number of processes; 0 or 1 works in the caller's.
        initializer: runs once in every process before its first task.
        initializer_arguments: arguments of `initializer`.

    Raises:
        InputError: a process was killed.
    """
    with WorkerPool(
        num_workers, initializer=initializer, initializer_arguments=initializer_arguments
    ) as pool:
        yield from pool.map_in_order(function, tasks)


class WorkerPool:
    """Processes for several mappings: they start with the first one and end with the context."""

    def __init__(
        self,
        num_workers: int,
        *,
        initializer: Callable[..., None] | None = None,
        initializer_arguments: tuple[Any, ...] = (),
    ) -> None:
        """Choose the processes; arguments as for `map_in_order`."""
        self._num_workers = num_workers
        self._initializer = initializer
        self._initializer_arguments = initializer_arguments
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Return the pool, which has no process yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes, after their tasks in progress."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def map_in_order(
        self, function: Callable[[Task], Result], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """Yield `function(task)` for every task; arguments and errors as for `map_in_order`.

        In the caller's process, the initializer runs before the first mapping alone.
        """
        if self._num_workers <= 1:
            if self._initializer is not None:
                self._initializer(*self._initializer_arguments)
                self._initializer = None
            yield from map(function, tasks)
            return
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._num_workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_process,
                initargs=(self._initializer, self._initializer_arguments),
            )
        width = self._num_workers * _TASKS_PER_WORKER
        try:
            yield from _sliding_window(self._executor, function, tasks, width)
        except BrokenProcessPool as error:
            raise InputError(
                f"one of num_workers={self._num_workers} processes ended before its task was done: "
                "if memory ran out, set a smaller num_workers; else look above for its error"
            ) from error


def _start_process(
    initializer: Callable[..., None] | None, initializer_arguments: tuple[Any, ...]
) -> None:
    signal_at_parents_end(signal.SIGKILL)  # at once: tasks in progress must not go on
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a started process"
    if not parent.is_alive():
        os._exit(1)  # it ended before the kernel was asked
    if initializer is not None:
        initializer(*initializer_arguments)


def _sliding_window(
    executor: ProcessPoolExecutor,
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    width: int,
) -> Iterator[Result]:
    in_progress: deque[Future[Result]] = deque()
    for task in tasks:
        in_progress.append(executor.submit(function, task))
        if len(in_progress) >= width:
            yield in_progress.popleft().result()
    while in_progress:
        yield in_progress.popleft().result()
