"""On a real Slurm of two nodes the jobs of a sweep train, and one that is warned comes back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.drills.data_set import DataSet
from tests.slurm.cluster import SlurmCluster, wait_until
from tests.slurm.jobs import ROOT, tiny_settings, working_folder

STEPS = 40
STRUCK_AT = 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.distributed,
    pytest.mark.timeout(600),
]


def words_of(data: DataSet, folder: Path, *options: str) -> list[str]:
    queue = ["launcher=submitit_slurm", "launcher.nodes=2", "launcher.tasks_per_node=2"]
    queue += ["launcher.cpus_per_task=1", "launcher.timeout_min=20"]
    return [
        sys.executable, "-m", "launch.pretrain", "--multirun",
        *tiny_settings(data, folder / "sweep", STEPS),
        "tracking.wandb_mode=disabled",
        "optimizer.learning_rate=1e-3,3e-4",
        *("hydra/" + queue[0], *(f"hydra.{word}" for word in queue[1:])),
        *options,
    ]  # fmt: skip


def test_jobs_of_four_ranks_train_and_a_warned_one_comes_back(
    cluster: SlurmCluster, data: DataSet, tmp_path: Path
) -> None:
    folder = working_folder(tmp_path / "job")
    with (tmp_path / "log").open("w") as log:
        sweep = subprocess.Popen(
            words_of(data, folder),
            cwd=folder, stdout=log, stderr=subprocess.STDOUT,
            env={**cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def said() -> str:
        logs = sorted((folder / "sweep/.submitit").rglob("*_log.err"))
        return "\n".join(file.read_text()[-3000:] for file in [tmp_path / "log", *logs])

    metrics = folder / "sweep/optimizer.learning_rate=1e-3/metrics.jsonl"

    def has_come() -> bool:
        assert sweep.poll() is None, said()
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return any(json.loads(line).get("step", 0) >= STRUCK_AT for line in lines[:-1])

    try:
        wait_until(has_come, f"step {STRUCK_AT}", seconds=240)
        found = re.search(r"learning_rate=1e-3 is job (\d+_0)", (tmp_path / "log").read_text())
        assert found is not None, said()
        cluster.run("scancel", "--signal=USR1", found[1])
        assert sweep.wait(timeout=300) == 0, said()
    finally:
        sweep.kill()
        sweep.wait()

    rows = [line.split("\t") for line in (folder / "sweep/sweep.tsv").read_text().splitlines()]
    assert [row[:3] for row in rows[1:]] == [["1e-3", "done", "40"], ["3e-4", "done", "40"]]
    assert cluster.job(found[1])["Restarts"] == "1"
    ranks = {path.name for path in (folder / "sweep/.submitit").rglob("*_0_*_log.out")}
    assert len(ranks) == 4


def test_slurms_refusal_is_its_own_message(
    cluster: SlurmCluster, data: DataSet, tmp_path: Path
) -> None:
    folder = working_folder(tmp_path / "job")

    done = cluster.run(
        *words_of(data, folder, "hydra.launcher.partition=none"),
        cwd=folder, environment={"PYTHONPATH": str(ROOT)}, is_checked=False,
    )  # fmt: skip

    assert done.returncode == 2, done.stderr
    assert "Slurm refuses the jobs of this sweep: " in done.stderr
    assert "invalid partition specified" in done.stderr
