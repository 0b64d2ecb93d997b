"""The time of a new process until its first batch; run by `benchmarks/loader.py`.

The imports of a process are part of that time, so this module imports as little as possible.
"""

import multiprocessing
import time
from contextlib import closing
from pathlib import Path

from benchmarks.support.measurer import Result, Task, answer, tasks


def resumed(task: Task) -> Result:
    """Read one batch at a position deep in a large data set; return seconds by part."""
    started = time.time()
    from benchmarks.loader_parts.ours import token_batches
    from ernie_vilg.config.loader import LoaderConfig
    from ernie_vilg.data.batches.workers import start_worker_server

    imported = time.time()
    folder, batch_size, num_workers = Path(task["folder"]), task["batch_size"], task["num_workers"]
    start_worker_server(LoaderConfig(num_workers=num_workers))
    if num_workers:  # in a run, its server imports while the model is built
        process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(0,))
        process.start()
        process.join()
    served = time.time()
    with closing(token_batches(folder, batch_size, num_workers)) as batches:
        prepared = time.time()
        batches.at(1 + task["position"] // batch_size)
        ready = time.time()
    return {
        "launch": started - task["launched_at"],
        "imports": imported - started,
        "server": served - imported,
        "manifest": prepared - served,
        "first_batch": ready - served,
        "total": ready - task["launched_at"],
    }


def main() -> None:
    """Answer one task per process: a second one would find everything imported."""
    for task in tasks():
        answer(resumed(task))


if __name__ == "__main__":
    main()
