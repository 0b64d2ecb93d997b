"""Measurements in processes of their own, so that no measurement inherits another's state.

A process reads its tasks as lines of JSON and answers with marked lines; other lines are progress.
It imports only what it measures. Two processes may live side by side and be asked in turn: one
waits without working while the other is measured.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ernie_vilg.system.ports import free_port

Task = dict[str, Any]
Result = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
_MARK = "RESULT "
_CORE = "BENCHMARK_CORE"
_KEPT_LINES = 40


class Measurer:
    """A process that measures; a context manager that ends it."""

    def __init__(
        self,
        module: str,
        *,
        core: int | None = None,
        environment: Mapping[str, str] | None = None,
        shows_progress: bool = False,
    ) -> None:
        """Start it.

        Args:
            module: a module of `benchmarks` that answers tasks, such as "loader_parts.ours".
            core: the only core that it may run on; None allows all.
            environment: variables to add to this process's own.
            shows_progress: whether to print the lines that are not answers.
        """
        self._shows_progress = shows_progress
        self._module = module
        self._launched_at = time.time()
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        own[_CORE] = "" if core is None else str(core)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"benchmarks.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **own, **(environment or {})},
            start_new_session=True,  # `kill` also ends what it has started, such as compilers
        )
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._listener = threading.Thread(
            target=self._errors.extend, args=(self._process.stderr,), daemon=True
        )
        self._listener.start()

    def __enter__(self) -> "Measurer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.kill()
        with self._process:
            self.finish()
            self._listener.join()

    def send(self, task: Task) -> None:
        """Send a task; the time at which the process was started is added to it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which `answers` and `ask` notice
            self._process.stdin.write(json.dumps({**task, "launched_at": self._launched_at}) + "\n")
            self._process.stdin.flush()

    def finish(self) -> None:
        """Say that there are no more tasks: the process ends after the last one."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def answers(self) -> Iterator[Result]:
        """Yield answers until the process ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                result: Result = json.loads(line.removeprefix(_MARK))
                yield result
            elif self._shows_progress:
                print(f"    {line.rstrip()}", flush=True)

    def ask(self, task: Task) -> Result:
        """Send a task and return its first answer.

        Raises:
            RuntimeError: the process failed; the message ends with its last lines.
        """
        self.send(task)
        for result in self.answers():
            return result
        code, lines = self.wait(), "".join(self._errors)
        raise RuntimeError(f"{self._module} ended with {code} at {task}:\n{lines}")

    def wait(self) -> int:
        """Wait for the process to end; return its exit status."""
        code = self._process.wait()
        self._listener.join()
        return code

    def kill(self) -> None:
        """End the process and all processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def failure(self) -> str:
        """Return the line of an ended process's output that says why it failed."""
        lines = [line for line in self._errors if line.strip()]
        named = [line for line in lines if "Error" in line or "Exception" in line]
        return first_line((named or lines or [f"ended with {self.wait()}"])[-1])


def answers_within(module: str, task: Task, limit_seconds: float) -> list[Result]:
    """Run one task in a process of its own and return its answers.

    A last answer with the key `failed` says why the process ended early, if it did.
    """
    with Measurer(module) as measurer:
        is_late = threading.Event()
        timer = threading.Timer(limit_seconds, lambda: (is_late.set(), measurer.kill()))
        timer.start()
        measurer.send(task)
        measurer.finish()
        found = list(measurer.answers())
        failed = measurer.wait() != 0
        timer.cancel()
        if is_late.is_set():
            found.append({"failed": f"not done after {limit_seconds:.0f} s"})
        elif failed:
            found.append({"failed": measurer.failure()})
    return found


@contextmanager
def started_ranks(module: str, count: int) -> Iterator[list[Measurer]]:
    """Start the ranks of one job on this machine, with the environment that a launcher gives."""
    job = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Measurer(module, environment={**job, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            )
            for rank in range(count)
        ]


def ask_all(measurers: Sequence[Measurer], task: Task) -> list[Result]:
    """Send a task to all processes at once and return their answers in order."""
    with ThreadPoolExecutor(len(measurers)) as threads:
        answers = [threads.submit(measurer.ask, task) for measurer in measurers]
        try:
            return [answer.result() for answer in answers]
        except BaseException:
            for measurer in measurers:
                measurer.kill()
            raise


def tasks() -> Iterator[Task]:
    """Yield this process's tasks; it first binds itself to the core that it was given."""
    core = os.environ[_CORE]
    if core:
        os.sched_setaffinity(0, {int(core)})
    for line in sys.stdin:
        task: Task = json.loads(line)
        yield task


def answer(result: Result) -> None:
    """Send an answer to the process that asked."""
    print(_MARK + json.dumps(result), flush=True)


def first_line(text: str) -> str:
    """Return the first line of a message, short enough for a table."""
    return (text.strip().splitlines() or ["no message"])[0][:90]
