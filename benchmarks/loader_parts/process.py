"""One measurement, one process: what is measured starts with nothing of what was measured before.

The process gets its task as JSON, and prints its progress and at last its result on lines that are
marked. It imports no more than what it measures.

Source: ours.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

Task = dict[str, Any]
Result = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
_MARK = "RESULT "
_SHOWN_LINES = 20


def measure(module: str, task: Task, *, core: int | None = None) -> Result:
    """Run a measurement in a process of its own.

    Args:
        module: of this package, which answers tasks.
        task: what it is asked, as JSON.
        core: the only one that it may run on; None leaves it all.

    Raises:
        RuntimeError: it failed; its last lines are shown.
    """
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", f"benchmarks.loader_parts.{module}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors: deque[str] = deque(maxlen=_SHOWN_LINES)
    listener = threading.Thread(target=errors.extend, args=(process.stderr,))
    listener.start()
    with process.stdin as stdin:
        stdin.write(json.dumps({**task, "core": core, "launched_at": time.time()}))
    result = _listen(process.stdout)
    process.wait()
    listener.join()
    if process.returncode or result is None:
        raise RuntimeError(
            f"{module} ended with {process.returncode} at {task}:\n{''.join(errors)}"
        )
    return result


def _listen(output: TextIO) -> Result | None:
    result: Result | None = None
    for line in output:
        if line.startswith(_MARK):
            result = json.loads(line.removeprefix(_MARK))
        else:
            print(f"    {line.rstrip()}", flush=True)
    return result


def read_task() -> Task:
    """Return what this process is asked, and keep to the core that it is given."""
    task: Task = json.load(sys.stdin)
    if task["core"] is not None:
        os.sched_setaffinity(0, {task["core"]})
    return task


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
