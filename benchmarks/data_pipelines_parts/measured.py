"""A command, and what it took: seconds, processor seconds of all its processes, and memory."""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.support.results import ROOT

_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one command."""

    wall: float
    """Seconds."""
    processor: float
    """Processor seconds of the command and its processes."""
    driver_bytes: int
    """Largest memory of the command's own process, shared pages included."""
    worker_bytes: int
    """Largest memory of any of its processes."""


def run(words: Sequence[str], log: Path) -> Cost:
    """Run a command of this repository to its end.

    Raises:
        RuntimeError: it failed; the message ends with its output.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdout=output, stderr=output, env=environment
        )
        watch = _MemoryWatch(process.pid)
        code = process.wait()
        wall = time.perf_counter() - start
        watch.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(words)} ended with {code}: {tail}")
    return Cost(
        wall=wall,
        processor=after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        driver_bytes=watch.driver_bytes,
        worker_bytes=watch.worker_bytes,
    )


class _MemoryWatch:
    """Reads the peak memory of a process and of its descendants while they live."""

    def __init__(self, pid: int) -> None:
        self.driver_bytes = self.worker_bytes = 0
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            try:
                workers = self._process.children(recursive=True)
            except psutil.Error:
                return
            self.driver_bytes = max(self.driver_bytes, _peak(self._process.pid))
            peaks = [_peak(worker.pid) for worker in workers]
            self.worker_bytes = max([self.worker_bytes, *peaks])


def _peak(pid: int) -> int:
    """Return a living process's peak memory; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0
