"""Training jobs on the tests' cluster, and their results."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.drills.data_set import CODEBOOK_SIZE, GRID_SIZE, TEXT_VOCAB_SIZE, DataSet
from launch.drills.runs import DrilledRun
from launch.support.composition import compose_program
from launch.support.program import CONF_FOLDER
from tests.slurm.cluster import SlurmCluster, wait_until

ROOT = CONF_FOLDER.parent
NUM_RANKS = 4
_LAYOUT = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run, trained by jobs."""

    cluster: SlurmCluster
    """Cluster of its jobs."""
    folder: Path
    """Working folder of the jobs, like a user's clone of the repository."""
    settings: tuple[str, ...]
    """Options of launch/pretrain.py."""

    @property
    def run(self) -> DrilledRun:
        """The run as a drilled run, with its losses and checkpoints."""
        config = compose_program("pretrain", self.settings)
        return DrilledRun(folder=self.folder, config=config, num_ranks=NUM_RANKS)

    def submit(self, *options: str) -> str:
        """Submit the run and return the job's number."""
        words = (*_LAYOUT, *options, "launch/slurm/pretrain.sbatch")
        return submit(self.cluster, self.folder, *words, settings=self.settings)

    def log(self, job: str) -> str:
        """Return all output of a job, for a message."""
        files = [self.folder / f"slurm-{job}.log", *self.logs(job).glob("*.log")]
        return "\n".join(
            f"== {file.name}\n{file.read_text(errors='replace')}" for file in files if file.exists()
        )

    def logs(self, job: str) -> Path:
        """Return the folder of a job's logs."""
        return self.folder / "outputs" / f"slurm-{job}"

    def finish(self, job: str, seconds: float = 240) -> dict[str, str]:
        """Wait for the end of a job; return its fields."""
        told = self.cluster.wait_for_job(job, "COMPLETED", "FAILED", "CANCELLED", seconds=seconds)
        assert told["JobState"] == "COMPLETED", self.log(job)
        return told

    def wait_for_requeue(self, job: str) -> Mapping[str, Any]:
        """Wait until a job is requeued; return the run's record of its stop."""
        self.cluster.wait_for_job(job, "PENDING", seconds=120)
        return self.run.stopped()

    def wait_for_step(self, step: int, job: str) -> None:
        """Wait until the run has taken a step."""
        metrics = self.run.run_dir / "metrics.jsonl"

        def has_come() -> bool:
            assert self.cluster.job(job)["JobState"] in {"PENDING", "RUNNING"}, self.log(job)
            return metrics.exists() and max(self.run.losses(), default=0) >= step

        wait_until(has_come, f"step {step}", seconds=180)

    def wait_for_words(self, words: str, job: str) -> None:
        """Wait until a job has written a text."""
        wait_until(lambda: words in self.log(job), f"{words!r} in the job's logs", seconds=120)


def submit(cluster: SlurmCluster, folder: Path, *words: str, settings: Sequence[str] = ()) -> str:
    """Submit a job with this interpreter and return its number.

    Args:
        cluster: the cluster.
        folder: folder of the submission, from `working_folder`.
        words: options of sbatch, and the script.
        settings: options of the script's program.
    """
    done = cluster.run(
        "sbatch",
        "--parsable",
        *words,
        f"--python={sys.executable}",
        *settings,
        cwd=folder,
        environment={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return done.stdout.strip()


def working_folder(folder: Path) -> Path:
    """Make a folder that looks like a clone of the repository."""
    folder.mkdir()
    for name in ("launch", "conf"):
        os.symlink(ROOT / name, folder / name)
    return folder


def start_trial(cluster: SlurmCluster, data: DataSet, folder: Path, steps: int) -> Trial:
    """Return a short run that has no jobs yet."""
    working_folder(folder)
    settings = tiny_settings(data, folder / "run", steps)
    return Trial(cluster=cluster, folder=folder, settings=settings)


def tiny_settings(data: DataSet, run_dir: Path, steps: int) -> tuple[str, ...]:
    """Return the settings of a run that four ranks train in seconds."""
    return (
        "experiment=quickstart",
        "model.hidden_size=64",
        "model.num_heads=2",
        "model.num_layers=2",
        f"model.text_vocab_size={TEXT_VOCAB_SIZE}",
        "model.text_length=16",
        f"model.codebook_size={CODEBOOK_SIZE}",
        f"model.image_grid_size={GRID_SIZE}",
        "precision=fp32",
        f"data.token_shards={data.token_shards}",
        f"data.text_tokenizer={data.text_tokenizer}",
        f"data.image_tokenizer={data.image_tokenizer}",
        "parallelism.micro_batch_size=2",
        f"parallelism.global_batch_size={4 * NUM_RANKS}",
        "optimizer.warmup_steps=2",
        f"training.steps={steps}",
        "training.log_every=1",
        "checkpoint.every=10",
        "samples.every=0",
        f"run_dir={run_dir}",
    )
