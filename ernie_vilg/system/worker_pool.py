"""One function over many tasks on several processes, with the results in order.

Processes are spawned, not forked: a fork copies locks that other threads may hold. At most
two tasks per process are under way, so a long list of tasks costs no memory. Processes end
with the program that started them, even if it is killed: left alone they would write on into
files that the program, started again, writes too.

Source: ours, on the standard library's process pool.
"""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ernie_vilg.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")

_TASKS_UNDER_WAY = 2  # per process: the next one waits while the other is worked on


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
        function: at the top level of a module, so that a process can import it.
        tasks: values that can be pickled.
        num_workers: processes; 0 or 1 works in the caller's own.
        initializer: runs once in every process before its first task.
        initializer_arguments: what it is called with.

    Raises:
        InputError: a process was killed.
    """
    if num_workers <= 1:
        if initializer is not None:
            initializer(*initializer_arguments)
        yield from map(function, tasks)
        return
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_process,
        initargs=(initializer, initializer_arguments),
    )
    try:
        yield from _sliding_window(executor, function, tasks, num_workers * _TASKS_UNDER_WAY)
    except BrokenProcessPool as error:
        raise InputError(
            f"one of num_workers={num_workers} processes ended before its task was done: if "
            "memory ran out, set a smaller num_workers; else look above for its error"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_process(
    initializer: Callable[..., None] | None, initializer_arguments: tuple[Any, ...]
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initializer_arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # runs in started processes only
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)  # at once: the tasks under way must not go on


def _sliding_window(
    executor: ProcessPoolExecutor,
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    width: int,
) -> Iterator[Result]:
    under_way: deque[Future[Result]] = deque()
    for task in tasks:
        under_way.append(executor.submit(function, task))
        if len(under_way) >= width:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
