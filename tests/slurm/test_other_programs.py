"""Encoding as an array, and the image tokenizer over two nodes, on a real Slurm."""

import json
from pathlib import Path

import pytest

from ernie_vilg.checkpoint.folder import committed_checkpoints
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.vqgan.weights import load_image_tokenizer
from launch.drills.data_set import DataSet
from tests.slurm.cluster import SlurmCluster, suspended, wait_until
from tests.slurm.jobs import submit, working_folder

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


def finish(cluster: SlurmCluster, folder: Path, job: str) -> None:
    told = cluster.wait_for_job(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
    logs = "\n".join(path.read_text() for path in sorted(folder.rglob("*.log")))
    assert told["JobState"] == "COMPLETED", logs


def test_an_array_encodes_what_one_process_does(
    cluster: SlurmCluster, data: DataSet, tmp_path: Path
) -> None:
    folder = working_folder(tmp_path / "encoding")
    script = ("--cpus-per-task=1", "launch/slurm/encode_shards.sbatch")
    settings = (
        f"shards={data.token_shards.with_name('image_shards')}",
        f"text_tokenizer_dir={data.text_tokenizer}",
        f"image_tokenizer_dir={data.image_tokenizer}",
        f"output_dir={folder / 'token_shards'}",
    )

    array = submit(cluster, folder, "--array=1-2", *script, settings=settings)
    job = submit(cluster, folder, f"--dependency=afterok:{array}", *script, settings=settings)
    finish(cluster, folder, job)

    assert read_manifest(folder / "token_shards", "token") == read_manifest(
        data.token_shards, "token"
    )
    parts = [path.read_text() for path in sorted(folder.glob(f"outputs/slurm-{array}_*/rank_0-*"))]
    assert [
        line.removesuffix(" encoded")
        for part in parts
        for line in part.splitlines()
        if line.startswith("part")
    ] == ["part 0 of 2: 2 shards", "part 1 of 2: 1 shards"]


def submit_image_tokenizer(
    cluster: SlurmCluster, folder: Path, data: DataSet, *options: str, steps: int
) -> str:
    settings = (
        "image_tokenizer=quickstart",
        f"shards={data.token_shards.with_name('image_shards')}",
        f"run_dir={folder / 'run'}",
        "image_tokenizer.base_channels=8",
        f"training.steps={steps}",
        "checkpoint.every=5",
        "training.global_batch_size=4",
        "reconstructions.pictures=2",
    )
    return submit(
        cluster, folder, *options, "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1",
        "launch/slurm/train_image_tokenizer.sbatch", settings=settings,
    )  # fmt: skip


@pytest.mark.distributed
def test_two_nodes_train_the_image_tokenizer(
    cluster: SlurmCluster, data: DataSet, tmp_path: Path
) -> None:
    folder = working_folder(tmp_path / "training")

    job = submit_image_tokenizer(cluster, folder, data, "--nodes=2", steps=4)
    finish(cluster, folder, job)

    load_image_tokenizer(folder / "run" / "weights")


def test_a_warned_image_tokenizer_saves_requeues_and_resumes(
    cluster: SlurmCluster, data: DataSet, tmp_path: Path
) -> None:
    folder = working_folder(tmp_path / "out_of_time")
    job = submit_image_tokenizer(cluster, folder, data, steps=60)
    wait_until(lambda: bool(committed_checkpoints(folder / "run")), "the first checkpoint", 120)

    with suspended(cluster.rank(job, 0, "train_image_tokenizer.py")):  # or it would be done
        cluster.run("scancel", "--signal=USR1", job)
    cluster.wait_for_job(job, "PENDING", seconds=120)
    finish(cluster, folder, job)

    logs = [path.read_text() for path in folder.glob("outputs/*/rank_0-*.log")]
    assert any("SIGUSR1 or SIGUSR2 arrived: stopping after this step" in log for log in logs)
    lines = RunFolder(folder / "run").metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == 60
    assert any("resumed" in log for log in logs)
    load_image_tokenizer(folder / "run" / "weights")
