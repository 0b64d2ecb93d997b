"""Measurements in processes of their own, which start with nothing of what was measured before.

A process gets its tasks as lines of JSON, and answers each with a line that is marked; other lines
are progress. It imports no more than what it measures. Two that are compared may live side by side
and be asked in turn: one waits, without work, while the other is measured.

Source: ours.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Task = dict[str, Any]
Result = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
_MARK = "RESULT "
_CORE = "BENCHMARK_CORE"
_SHOWN_LINES = 20


class Measurer:
    """A process that measures."""

    def __init__(self, module: str, *, core: int | None = None) -> None:
        """Start it.

        Args:
            module: of this package, which answers tasks.
            core: the only one that it may run on; None leaves it all.
        """
        self._module = module
        self._launched_at = time.time()
        core_text = "" if core is None else str(core)
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", f"benchmarks.loader_parts.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, _CORE: core_text},
        )
        self._errors: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._listener = threading.Thread(
            target=self._errors.extend, args=(self._process.stderr,), daemon=True
        )
        self._listener.start()

    def ask(self, task: Task) -> Result:
        """Return what is measured.

        Args:
            task: what is asked, as JSON; the time at which the process was started is added.

        Raises:
            RuntimeError: it failed; its last lines are shown.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):  # it has ended: below it is said how
            stdin.write(json.dumps({**task, "launched_at": self._launched_at}) + "\n")
            stdin.flush()
        for line in stdout:
            if line.startswith(_MARK):
                result: Result = json.loads(line.removeprefix(_MARK))
                return result
            print(f"    {line.rstrip()}", flush=True)
        self._listener.join()
        lines = "".join(self._errors)
        raise RuntimeError(f"{self._module} ended with {self._process.wait()} at {task}:\n{lines}")

    def close(self) -> None:
        """End the process: it has no more tasks."""
        with self._process:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._listener.join()


def tasks() -> Iterator[Task]:
    """Yield what this process is asked, after keeping to the core that it is given."""
    core = os.environ[_CORE]
    if core:
        os.sched_setaffinity(0, {int(core)})
    for line in sys.stdin:
        task: Task = json.loads(line)
        yield task


def answer(result: Result) -> None:
    """Say what was measured."""
    print(_MARK + json.dumps(result), flush=True)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def per_sample(self, num_samples: int) -> Result:
        """Return how many samples went by, and the seconds that each took.

        Seconds are those of the wall clock and those of the processor, all threads together.
        """
        return {
            "samples": num_samples,
            "wall": (time.perf_counter() - self._wall) / num_samples,
            "processor": (time.process_time() - self._processor) / num_samples,
        }
