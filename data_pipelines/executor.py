"""Tasks of a pipeline, run by processes of this machine or by a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from data_pipelines.ray_executor import RaySettings, map_with_ray
from ernie_vilg.system.worker_pool import WorkerPool, map_in_order

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Engine that runs tasks, and the number of tasks at once."""

    kind: Literal["processes", "ray"] = "processes"
    num_workers: int = 1
    """Tasks at once; 0 and 1 work in the caller's process. With Ray, 0 takes every CPU."""
    pool: WorkerPool | None = None
    """Processes of this machine that stay for the next mapping; None starts them for each."""
    ray_address: str | None = None
    gpus_per_task: float = 0.0
    """GPUs that Ray reserves for each task."""
    shared_folder: Path | None = None
    """Folder of the program's files, which every node of a Ray cluster must see."""
    ray_dashboard: bool = True
    """Whether a Ray that is started on this machine shows its page."""

    def map_in_order(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        *,
        initializer: Callable[..., None] | None = None,
        initializer_arguments: tuple[Any, ...] = (),
    ) -> Iterator[Result]:
        """Yield `function(task)` for every task, in the order of the tasks.

        A task may run again after a worker was lost: it writes files whole, or not at all.

        Args:
            function: defined at the top level of a module.
            tasks: values that can be pickled; few of them are in progress at once.
            initializer: runs once in every process before its first task.
            initializer_arguments: arguments of `initializer`.

        Raises:
            InputError: a worker process of this machine was killed, a task ends every worker of
                Ray, Ray cannot be reached, or its nodes differ from this machine.
        """
        if self.kind == "ray":
            yield from map_with_ray(
                function,
                tasks,
                self._ray_settings,
                initializer=initializer,
                initializer_arguments=initializer_arguments,
            )
            return
        if self.pool is not None:
            assert initializer is None, "the pool has its own"
            yield from self.pool.map_in_order(function, tasks)
            return
        yield from map_in_order(
            function,
            tasks,
            num_workers=self.num_workers,
            initializer=initializer,
            initializer_arguments=initializer_arguments,
        )

    @property
    def _ray_settings(self) -> RaySettings:
        return RaySettings(
            address=self.ray_address,
            num_workers=self.num_workers,
            gpus_per_task=self.gpus_per_task,
            shared_folder=self.shared_folder,
            dashboard=self.ray_dashboard,
        )
