"""Jobs of a sweep that submitit starts: on this machine, with submitit's own local executor."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from launch.drills.data_set import make_data_set
from launch.support.environment import read_launch
from launch.support.submitted_sweep import LOGS_NAME, Queue, SubmittedSweep, check_ranks, queue_of
from launch.support.sweep import jobs_of
from launch.support.sweep_run import TABLE_NAME, run_sweep
from tests.launch.support.test_sweep_run import (
    JOB,
    ROOT,
    restored_handlers,
    started_by_a_person,
)
from tests.launch.test_pretrain import settings

__all__ = ["restored_handlers", "started_by_a_person"]  # fixtures

LOCAL = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
RANK = """
import json, os, pathlib, sys
options = dict(option.split("=", 1) for option in sys.argv[1:])
run = pathlib.Path(options["run_dir"])
run.mkdir(parents=True, exist_ok=True)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
(run / f"rank_{os.environ['RANK']}").write_text(json.dumps([os.environ[name] for name in names]))
sys.exit(int(options["code"]) if os.environ["RANK"] == "1" else 0)
"""
"""A rank that writes what its launcher told it; the second one ends as it is told."""


def local_queue(*options: str) -> Queue:
    return queue_of([*LOCAL, *options], "pretrain")


def sweep_of(folder: Path, *options: str, program: str = JOB, queue: Queue) -> SubmittedSweep:
    return SubmittedSweep([sys.executable, "-c", program], folder, jobs_of(options), queue)


def rows_of(folder: Path) -> list[list[str]]:
    return [line.split("\t") for line in (folder / TABLE_NAME).read_text().splitlines()]


def test_every_job_ends_in_a_run_folder_of_its_own(tmp_path: Path) -> None:
    code = sweep_of(tmp_path, "code=0,1,2,75", queue=local_queue()).run()

    assert code == ExitCode.FAILED
    assert [[row[0], row[1], row[-1]] for row in rows_of(tmp_path)] == [
        ["code", "ending", "run folder"],
        ["0", "done", "code=0"],
        ["1", "failed", "code=1"],
        ["2", "refused", "code=2"],
        ["75", "stopped", "code=75"],
    ]
    assert len(list((tmp_path / LOGS_NAME).glob("*/*.out"))) == 4


def test_ranks_of_a_job_share_a_rendezvous(tmp_path: Path) -> None:
    queue = local_queue("hydra.launcher.tasks_per_node=2")

    code = sweep_of(tmp_path, "code=0,1", program=RANK, queue=queue).run()

    assert code == ExitCode.FAILED
    assert [row[1] for row in rows_of(tmp_path)] == ["ending", "done", "failed"]
    told = [
        [(tmp_path / f"code={code}" / f"rank_{rank}").read_text() for rank in (0, 1)]
        for code in (0, 1)
    ]
    for first, second in told:
        *place, address, port = first.strip("[]").split(", ")
        assert place == ['"0"', '"0"', '"2"']
        assert second == f'["1", "1", "2", {address}, {port}]'
    assert told[0][0] != told[1][0], "jobs at the same time have ports of their own"


def test_a_signal_stops_the_jobs_which_save_first(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from tests.launch.support.test_submitted_sweep import local_queue, sweep_of; "
        "sys.exit(sweep_of(Path(sys.argv[1]), 'wait=1', 'code=0,1', queue=local_queue()).run())"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT) as sweep:
        while not all((tmp_path / f"code={code}" / "waits").exists() for code in (0, 1)):
            assert sweep.poll() is None
            time.sleep(0.05)
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(timeout=60) == ExitCode.STOPPED

    assert [row[1] for row in rows_of(tmp_path)] == ["ending", "stopped", "stopped"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["hydra/launcher=joblib"], "name one of hydra/launcher=submitit_", id="other"),
        pytest.param(["hydra.launcher.nodes=2"], "name one of hydra/launcher=", id="no launcher"),
        pytest.param([*LOCAL, "hydra.launcher.partition=x"], "no such setting: there", id="key"),
        pytest.param([*LOCAL, "hydra.launcher.timeout_min=soon"], "timeout_min=soon: ", id="kind"),
        pytest.param([*LOCAL, "hydra.launcher.mem_gb=1,2"], "one value belongs here", id="several"),
        pytest.param([*LOCAL, "hydra.launcher.nodes=2"], "nodes is 1 with submitit_local", id="2"),
        pytest.param([*LOCAL, "hydra.launcher.tasks_per_node=0"], "are at least 1", id="no rank"),
        pytest.param(
            [*LOCAL, "hydra.launcher.submitit_folder=x"], "no such setting", id="not ours"
        ),
    ],
)
def test_a_wrong_launcher_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        queue_of(options, "pretrain")


def test_without_slurm_or_submitit_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no sbatch and srun here"):
        queue_of(["hydra/launcher=submitit_slurm"], "pretrain")

    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'ernie-vilg\[submitit\]'"):
        queue_of(LOCAL, "pretrain")


def test_a_launcher_is_for_a_sweep() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.pretrain", "experiment=quickstart", LOCAL[0]],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == ExitCode.BAD_SETTINGS
    assert "hydra/launcher: this is for the jobs of a sweep: add --multirun" in done.stderr


def test_slurms_settings_reach_the_batch_script() -> None:
    import submitit

    from launch.support.submitted_sweep import _parameters

    settings = {
        "nodes": 2, "tasks_per_node": 8, "timeout_min": 90, "partition": "gpu",
        "additional_parameters": {"reservation": "mine"},
    }  # fmt: skip
    executor = submitit.SlurmExecutor.__new__(submitit.SlurmExecutor)

    found = _parameters(Queue(executor="slurm", settings=settings))

    assert found["slurm_partition"] == "gpu"
    assert found["slurm_additional_parameters"] == {"requeue": True, "reservation": "mine"}
    assert found["tasks_per_node"] == 8
    assert {name.removeprefix("slurm_") for name in found if name.startswith("slurm_")} <= (
        executor._valid_parameters()
    )


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused_first() -> None:
    options = ["experiment=quickstart", "training.steps=1,2", *LOCAL]
    options += ["hydra.launcher.tasks_per_node=3"]

    with pytest.raises(InputError, match="global_batch_size=8 is no multiple"):
        run_sweep("pretrain", PretrainConfig, options, has_ranks=True)
    check_ranks("pretrain", jobs_of(["experiment=quickstart", "training.steps=2,3"]), 2)


def test_a_task_of_an_array_is_the_job_that_is_requeued() -> None:
    array = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}

    assert read_launch(array).job == "12_3"
    assert read_launch({"SLURM_JOB_ID": "12"}).job == "12"


@pytest.mark.slow
@pytest.mark.distributed
def test_jobs_of_two_ranks_train(tmp_path: Path) -> None:
    data_set = make_data_set(tmp_path / "data")
    command = settings(data_set, tmp_path / "sweep", "samples.every=0", "--multirun")
    command += ["tracking.wandb_mode=disabled", "optimizer.learning_rate=1e-3,3e-4", *LOCAL]
    command += ["hydra.launcher.tasks_per_node=2"]

    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    logs = "".join(
        file.read_text()[-3000:] for file in (tmp_path / "sweep" / LOGS_NAME).rglob("*.err")
    )
    assert done.returncode == 0, done.stderr[-3000:] + logs
    rows = rows_of(tmp_path / "sweep")
    assert [row[:3] for row in rows[1:]] == [["1e-3", "done", "4"], ["3e-4", "done", "4"]]
