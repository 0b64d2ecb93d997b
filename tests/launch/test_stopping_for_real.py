"""Under the real launchers, ranks stop at one step, save, and leave no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ernie_vilg.system.ports import free_port
from launch.support.program import CONF_FOLDER
from tests.launch.stoppable_run import GRACE_SECONDS

PROGRAMS = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def launch_and_signal(
    launcher: list[str], run_dir: Path, number: int, save_seconds: float
) -> dict[str, Any]:
    """Start two ranks, signal the launcher, and wait for the end of all processes.

    Returns the run's record of its stop, with the checkpoint's step of both ranks.
    """
    words = [*launcher, "tests/launch/stoppable_run.py", str(run_dir), str(save_seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(words, cwd=CONF_FOLDER.parent, env=environment) as process:
        _wait_for_steps(run_dir)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, alive = psutil.wait_procs(family, timeout=3 * GRACE_SECONDS)
        for one in [*alive, process]:
            one.kill()
    assert alive == []
    files = [run_dir / f"checkpoint-rank_{rank}.json" for rank in range(2)]
    steps = [json.loads(file.read_text())["step"] if file.exists() else None for file in files]
    assert not (run_dir / "lock.json").exists()
    return {**json.loads((run_dir / "stopped.json").read_text()), "steps": steps}


def test_the_deepspeed_command_killed_outright(tmp_path: Path) -> None:
    """deepspeed passes no signal to its second launcher, which passes none to the ranks."""
    command = [str(PROGRAMS / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]

    left = launch_and_signal(command, tmp_path, signal.SIGKILL, save_seconds=0.1)

    assert left["reason"] == "launcher_gone"
    assert left["steps"] == [left["step"], left["step"]]


@pytest.mark.parametrize(
    ("save_seconds", "is_saved"),
    [(0.1, True), (2 * GRACE_SECONDS, False)],
    ids=["saved in time", "a save that takes longer than the grace"],
)
def test_torchrun_asked_to_end(tmp_path: Path, save_seconds: float, is_saved: bool) -> None:
    command = [str(PROGRAMS / "torchrun"), "--nproc_per_node=2", f"--master_port={free_port()}"]

    left = launch_and_signal(command, tmp_path, signal.SIGTERM, save_seconds)

    assert left["reason"] == "terminated"
    assert left["steps"] == ([left["step"], left["step"]] if is_saved else [None, None])
    assert Path(left["checkpoint"]).name == ("checkpoint-rank_0.json" if is_saved else "earlier")


def _wait_for_steps(run_dir: Path) -> None:
    deadline = time.monotonic() + 120
    while not all((run_dir / f"step-rank_{rank}").exists() for rank in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
