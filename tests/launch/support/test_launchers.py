"""After a SIGKILL of any launcher, no process of the run is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ernie_vilg.config.launch import Launch
from ernie_vilg.system.processes import mark_process
from launch.support.environment import is_launched, read_launch
from launch.support.launchers import find_launchers, names_program
from launch.support.program import CONF_FOLDER

ROOT = CONF_FOLDER.parent

# `deepspeed` starts a launcher, which starts the ranks; here all of them are this file. Its
# argument is the number of launchers still to start above the rank.
_CHAIN = """
import signal, subprocess, sys, time
from pathlib import Path
from launch.support.launchers import find_launchers, stop_with_launchers

folder, levels, manner = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
(folder / f"pid_{levels}").write_text(str(__import__("os").getpid()))
if levels:
    subprocess.run([sys.executable, __file__, str(folder), str(levels - 1), manner])
    sys.exit()
stop_with_launchers(find_launchers(sys.argv[0], is_launched=True), grace_seconds=1.0)
if manner == "training":
    def save(number, frame):
        (folder / "saved").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
elif manner == "hanging":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / "ready").touch()
time.sleep(60)
"""


def start_chain(folder: Path, manner: str) -> dict[int, int]:
    """Start two launchers and a rank; return the process ids, the rank's under 0."""
    program = folder / "chain.py"
    program.write_text(_CHAIN)
    subprocess.Popen([sys.executable, program, folder, "2", manner], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return {level: int((folder / f"pid_{level}").read_text()) for level in range(3)}


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.parametrize(
    ("manner", "killed"),
    [
        pytest.param("starting", 1, id="before training, the rank's parent"),
        pytest.param("training", 1, id="while training, the rank's parent"),
        pytest.param("training", 2, id="while training, the first launcher"),
        pytest.param("hanging", 2, id="in a rank that hangs, the first launcher"),
    ],
)
def test_a_killed_launcher_leaves_no_process(tmp_path: Path, manner: str, killed: int) -> None:
    processes = {level: psutil.Process(pid) for level, pid in start_chain(tmp_path, manner).items()}

    os.kill(processes[killed].pid, signal.SIGKILL)

    _, alive = psutil.wait_procs(processes.values(), timeout=10)
    for process in alive:
        process.kill()
    assert alive == []
    assert (tmp_path / "saved").exists() == (manner == "training")


@pytest.mark.parametrize(
    ("line", "is_launcher"),
    [
        ("python /venv/bin/deepspeed --num_gpus 2 launch/pretrain.py run_dir=a", True),
        ("python -m deepspeed.launcher.launch launch/pretrain.py --local_rank=0", True),
        ("torchrun --nproc_per_node=2 /root/x/launch/pretrain.py", True),
        ("torchrun --nproc_per_node=2 -m launch.pretrain", True),
        ("python -m launch.supervise --run-dir a -- torchrun launch/pretrain.py", True),
        ("-bash", False),
        ("python launch/main_job.py job=quickstart", False),
        ("python -m pytest tests/launch/test_pretrain.py", False),
    ],
)
def test_what_counts_as_a_launcher(line: str, is_launcher: bool) -> None:
    assert names_program(line.split(), "launch/pretrain.py") is is_launcher


def test_a_shell_that_types_the_whole_line_is_none() -> None:
    assert not names_program(["sh", "-c", "deepspeed launch/pretrain.py &"], "launch/pretrain.py")


def test_the_parent_counts_where_the_environment_says_so() -> None:
    assert find_launchers("launch/pretrain.py", is_launched=False) == ()
    (parent,) = find_launchers("launch/pretrain.py", is_launched=True)
    assert parent == mark_process(os.getppid())


def test_the_place_of_a_process() -> None:
    torchrun = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    shell = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}
    task = {**shell, "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "2", "SLURM_NTASKS": "8"}

    assert read_launch(torchrun) == Launch(rank=3, local_rank=1, world_size=4)
    assert read_launch(shell) == Launch(rank=0, local_rank=0, world_size=1, job="7")
    assert read_launch(task) == Launch(rank=0, local_rank=0, world_size=8, job="7", job_restarts=2)
    assert [is_launched(place) for place in ({}, shell, task, torchrun)] == [
        False,
        False,
        True,
        True,
    ]
