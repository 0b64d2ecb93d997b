"""Refused jobs: Slurm's own message, or the name of the node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm import accounts
from tests.slurm.cluster import PROGRAMS, SlurmCluster, missing_programs
from tests.slurm.jobs import ROOT, submit, working_folder

pytestmark = pytest.mark.slurm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return working_folder(tmp_path / "job")


def log_of(cluster: SlurmCluster, folder: Path, job: str) -> str:
    told = cluster.wait_for_job(job, "FAILED", "COMPLETED", seconds=120)
    assert told["JobState"] == "FAILED"
    return (folder / f"slurm-{job}.log").read_text()


def test_a_node_with_too_few_gpus_ends_the_job_by_its_name(
    cluster: SlurmCluster, folder: Path
) -> None:
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n[ $SLURMD_NODENAME = n1 ] && echo one && echo two || echo one\n")
    program.chmod(0o755)

    job = submit(
        cluster, folder, "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2",
        "--cpus-per-task=1", f"--export=ALL,PATH={folder}:{cluster.environment['PATH']}",
        "launch/slurm/pretrain.sbatch",
    )  # fmt: skip
    log = log_of(cluster, folder, job)

    assert "node n2: 1 GPUs seen, 2 asked" in log
    assert "node n1:" not in log
    assert "the check of the nodes ended with 1" in log
    assert not list(folder.glob("outputs/slurm-*/rank_*"))


def test_a_missing_container_ends_the_job_before_anything(
    cluster: SlurmCluster, folder: Path
) -> None:
    job = submit(
        cluster, folder, "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1",
        "launch/slurm/pretrain.sbatch", "--container=none.sif",
    )  # fmt: skip

    assert "--container=none.sif: no such file on" in log_of(cluster, folder, job)


def test_a_wrong_setting_is_shown_and_not_tried_again(cluster: SlurmCluster, folder: Path) -> None:
    # When the first of four ranks ends, srun kills the others, most before they log anything.
    job = submit(
        cluster, folder, "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0",
        "--cpus-per-task=1", "launch/slurm/pretrain.sbatch",
        settings=["experiment=quickstart", "training.steps=0"],
    )  # fmt: skip

    assert "training.steps=0: must be at least 1" in log_of(cluster, folder, job)
    assert cluster.job(job)["Restarts"] == "0"


@pytest.mark.slow
def test_a_job_that_fails_at_once_comes_back_twice_and_no_more(
    cluster: SlurmCluster, folder: Path
) -> None:
    program = folder / "python"
    program.write_text(
        "#!/bin/sh\n[ $1 = -m ] || exit 1\n"
    )  # every check succeeds, every run fails
    program.chmod(0o755)

    job = cluster.run(
        "sbatch", "--parsable", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1",
        "launch/slurm/pretrain.sbatch", f"--python={program}", cwd=folder,
    ).stdout.strip()  # fmt: skip

    log = log_of(cluster, folder, job)
    assert log.count("a failure: requeued") == 2
    assert "3 attempts in a row ended within 600 s: not requeued" in log
    assert cluster.job(job)["Restarts"] == "2"


def submit_by_program(
    cluster: SlurmCluster, folder: Path, word: str
) -> "subprocess.CompletedProcess[str]":
    """Run launch/submit.py with one setting of cluster.slurm."""
    words = [
        "experiment=quickstart", "cluster=slurm", "parallelism.global_batch_size=128",
        f"data.token_shards={folder}", f"data.text_tokenizer={folder}",
        f"data.image_tokenizer={folder}", "samples.every=0", f"run_dir={folder / 'run'}",
        word, "submit=true",
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, "launch/submit.py", *words],
        cwd=ROOT,
        env={**cluster.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wrong_partition_is_slurms_to_refuse(cluster: SlurmCluster, tmp_path: Path) -> None:
    done = submit_by_program(cluster, tmp_path, "cluster.slurm.partition=nowhere")

    assert done.returncode == 2, os.linesep.join((done.stdout, done.stderr))
    assert "invalid partition specified: nowhere" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    bool(missing_programs((*accounts.PROGRAMS, *PROGRAMS))),
    reason="apt-get install slurm-wlm munge slurmdbd mariadb-server",
)
def test_a_wrong_account_is_slurms_to_refuse(tmp_path: Path) -> None:
    with SlurmCluster(folder=tmp_path / "cluster", account="vision") as cluster:
        done = submit_by_program(cluster, tmp_path, "cluster.slurm.account=nobody")
        allowed = cluster.run("sbatch", "--test-only", "--account=vision", "--wrap=true")

    assert done.returncode == 2, os.linesep.join((done.stdout, done.stderr))
    assert "Invalid account or account/partition combination specified" in done.stderr
    assert "to start at" in allowed.stderr
