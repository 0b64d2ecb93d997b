"""Tasks run by Ray, with the results in order.

Ray places tasks on the CPUs of all nodes, and repeats one whose worker or node was lost. Our part:
few tasks are submitted at once, so a long list costs no memory; results come in the order of the
tasks; an exception is that of the task. Tasks end when the program does, even if it is killed.
"""

import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.ray_cluster import connect
from data_pipelines.ray_tasks import Outcome, Work, run_task, software
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes

_TASKS_PER_WORKER = 2  # one in progress, the next one waiting or done
_MOST_LOSSES = 3
"""Workers that a task may lose before the program ends: then the task itself ends them."""
_PROOF = ".seen-by-all-nodes-"


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Cluster that runs tasks, and the resources that each of them takes."""

    address: str | None
    """`auto` or `host:port`; null starts a cluster on this machine."""
    num_workers: int
    """Tasks at once; 0 takes every CPU."""
    gpus_per_task: float
    shared_folder: Path | None
    """Folder that every node must see."""
    dashboard: bool
    """Whether a cluster that is started shows Ray's page."""


def map_with_ray(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    settings: RaySettings,
    *,
    initializer: Callable[..., None] | None = None,
    initializer_arguments: tuple[Any, ...] = (),
) -> Iterator[Any]:
    """Yield `function(task)` for every task, in the order of the tasks.

    Args:
        function: defined at the top level of a module that every node has.
        tasks: values that can be pickled, small ones.
        settings: the cluster.
        initializer: runs once in every worker process before its first task.
        initializer_arguments: arguments of `initializer`, small ones.

    Raises:
        InputError: there is no such cluster, a node differs from this machine or does not see the
            shared folder, or a task ends its workers.
    """
    ray = connect(settings.address, num_workers=settings.num_workers, dashboard=settings.dashboard)
    with _proof(settings.shared_folder) as proof:
        work = Work(
            identity=secrets.token_hex(8),
            function=function,
            initializer=initializer,
            initializer_arguments=initializer_arguments,
            working_folder=os.getcwd(),
            proof=proof,
            software=software(),
        )
        window = _Window(ray, work, settings)
        try:
            for task in tasks:
                yield from window.make_room()
                window.submit(task)
            yield from window.rest()
        finally:
            window.cancel()


class _Window:
    """The tasks that are submitted and whose results were not yielded, in order."""

    def __init__(self, ray: Any, work: Work, settings: RaySettings) -> None:
        self._ray = ray
        self._settings = settings
        self._waiting: deque[tuple[Any, Any]] = deque()
        self._unfinished: set[Any] = set()
        # Of a task that reserves a GPU, Ray would end the process, and with it a loaded model.
        remote = ray.remote(
            num_cpus=1, num_gpus=settings.gpus_per_task, max_retries=_MOST_LOSSES, max_calls=0
        )

        def run(task: Any) -> Outcome:
            return run_task(work, task)

        run.__qualname__ = getattr(work.function, "__qualname__", "task")  # for Ray's page
        self._run: Any = remote(run)

    def submit(self, task: Any) -> None:
        """Hand a task to Ray."""
        reference = self._run.remote(task)
        self._waiting.append((task, reference))
        self._unfinished.add(reference)

    def make_room(self) -> Iterator[Any]:
        """Yield results until one more task may be submitted."""
        width = self._num_workers()
        while len(self._unfinished) >= width or len(self._waiting) >= width * _TASKS_PER_WORKER:
            self._wait()
            while self._waiting and self._waiting[0][1] not in self._unfinished:
                yield self._take()

    def rest(self) -> Iterator[Any]:
        """Yield the results of all tasks that were submitted."""
        while self._waiting:
            yield self._take()

    def cancel(self) -> None:
        """Stop what was submitted: nobody takes its result."""
        if not self._ray.is_initialized():
            return  # the connection has ended, and the tasks with it
        for reference in self._unfinished:
            self._ray.cancel(reference, force=True)

    def _num_workers(self) -> int:
        """Return how many tasks may run at once; nodes may come and go."""
        if self._settings.num_workers:
            return self._settings.num_workers
        resources = self._ray.cluster_resources()
        width = int(resources.get("CPU", 1))
        if self._settings.gpus_per_task:
            width = min(width, int(resources.get("GPU", 0) / self._settings.gpus_per_task))
        return max(1, width)

    def _wait(self) -> None:
        """Wait until a task is done."""
        done, _ = self._ray.wait(list(self._unfinished), fetch_local=False)
        self._unfinished.difference_update(done)

    def _take(self) -> Any:
        """Return the result of the first task."""
        task, reference = self._waiting.popleft()
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            raise InputError(
                f"the Ray cluster lost a task again and again, or itself "
                f"({type(error).__name__}; task {str(task)[:200]}): if memory ran out, set a "
                "smaller num_workers; else look into the logs of Ray. Then start the program "
                "again: what is finished stays"
            ) from error
        finally:
            self._unfinished.discard(reference)
        for record in outcome.records:
            logging.getLogger(record.name).handle(record)
        if outcome.error is not None:
            raise outcome.error
        return outcome.result


@contextmanager
def _proof(folder: Path | None) -> Iterator[Path | None]:
    """Keep a file in the shared folder by which nodes show that they see it."""
    if folder is None:
        yield None
        return
    for old in folder.glob(f"{_PROOF}*"):  # of a program that was killed
        old.unlink(missing_ok=True)
    path = folder.absolute() / f"{_PROOF}{secrets.token_hex(4)}"
    write_bytes(path, b"")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
