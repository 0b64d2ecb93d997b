"""How long a process needs from nothing to its first batch; run by `benchmarks/loader.py`.

Apart from `benchmarks.loader_parts.ours`, because what a process imports is a part of the time.

Source: ours.
"""

import time
from contextlib import closing
from pathlib import Path

from benchmarks.loader_parts.process import Result, Task, answer, read_task


def resumed(task: Task) -> Result:
    """Read one batch at a position deep in a large data set; return seconds by part."""
    started = time.time()
    from benchmarks.loader_parts.ours import token_batches

    imported = time.time()
    folder, batch_size = Path(task["folder"]), task["batch_size"]
    with closing(token_batches(folder, batch_size, task["num_workers"])) as batches:
        prepared = time.time()
        batches.at(task["position"] // batch_size)
        ready = time.time()
        return {
            "launch": started - task["launched_at"],
            "imports": imported - started,
            "manifest": prepared - imported,
            "first_batch": ready - imported,
            "total": ready - task["launched_at"],
        }


def main() -> None:
    """Answer the task."""
    answer(resumed(read_task()))


if __name__ == "__main__":
    main()
