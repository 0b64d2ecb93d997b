"""Tasks on several processes: results in order, and a killed process reported."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_vilg.system.worker_pool import WorkerPool, map_in_order


def square_slowly_at_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0.0)
    return number * number


def fail(number: int) -> int:
    raise ValueError(f"task {number}: mend it")


def die(_: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_the_order_of_tasks(num_workers: int) -> None:
    results = map_in_order(square_slowly_at_first, range(7), num_workers=num_workers)

    assert list(results) == [0, 1, 4, 9, 16, 25, 36]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_in_a_task_reaches_the_caller(num_workers: int) -> None:
    with pytest.raises(ValueError, match="task 3: mend it"):
        list(map_in_order(fail, [3], num_workers=num_workers))


def test_a_killed_process_is_reported() -> None:
    with pytest.raises(ValueError, match="num_workers=2 processes ended before"):
        list(map_in_order(die, [1], num_workers=2))


PROGRAM = """
import os, sys, time
from pathlib import Path
from ernie_vilg.system.worker_pool import map_in_order

def sleep(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)

if __name__ == "__main__":
    list(map_in_order(sleep, [sys.argv[1]] * 2, num_workers=2))
"""


def is_running(process_id: int) -> bool:
    status = Path(f"/proc/{process_id}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_processes_end_when_the_program_is_killed(tmp_path: Path) -> None:
    program, folder = tmp_path / "program.py", tmp_path / "started"
    program.write_text(PROGRAM)
    folder.mkdir()
    command = [sys.executable, str(program), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        assert wait_until(lambda: len(list(folder.iterdir())) == 2, seconds=30)
        process.kill()
    workers = [int(path.name) for path in folder.iterdir()]

    assert wait_until(lambda: not any(map(is_running, workers)), seconds=5)


def process_id(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def test_a_pool_keeps_its_processes_for_the_next_mapping() -> None:
    with WorkerPool(2) as pool:
        first = set(pool.map_in_order(process_id, range(6)))
        second = set(pool.map_in_order(process_id, range(6)))

    assert first | second == first
    assert os.getpid() not in first
