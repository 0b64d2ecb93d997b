"""The batch scripts' calls of Slurm, with stand-ins that record their arguments.

A real Slurm runs the same scripts in `tests/slurm`. This module tests the cases that it cannot have
on this machine: containers, and a Slurm that refuses.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.support.program import CONF_FOLDER

ROOT = CONF_FOLDER.parent
_RECORD = f"""#!{sys.executable} -IS
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""
_SCONTROL = """
if sys.argv[1:3] == ["show", "hostnames"]:
    print("gpu-a1\\nlogin7")
elif sys.argv[1] == "show":
    print("NodeName=gpu-a1 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=gpu-a1 State=ALLOCATED")
else:
    sys.exit(int(os.environ.get("REQUEUE_CODE", "1")))
"""
_SRUN = """
import signal, time
if "launch.cluster.check_node" in sys.argv:
    sys.exit()
with open(os.environ["CALLS"] + ".environment", "w") as environment:
    json.dump(dict(os.environ), environment)
if "WARN" in os.environ:
    os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(0.5)
sys.exit(int(os.environ.get("RANKS_CODE", "0")))
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Folder and programs of a batch script, as sbatch provides them."""

    folder: Path
    """Folder of the submission."""
    programs: Path
    """Folder of the stand-ins for Slurm's programs."""

    def run(self, script: str, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a script to its end."""
        return subprocess.run(
            ["bash", ROOT / "launch" / "slurm" / f"{script}.sbatch", *words],
            env={
                "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
                "CALLS": str(self.programs / "calls"),
                "SLURM_SUBMIT_DIR": str(self.folder),
                "SLURM_JOB_ID": "7",
                "SLURM_JOB_NODELIST": "gpu-a1,login7",
                "SLURM_JOB_NUM_NODES": "2",
                "SLURM_CPUS_PER_TASK": "4",
                **variables,
            },
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    def calls(self, program: str) -> list[list[str]]:
        """Return the arguments of every call of a program, in order."""
        lines = (self.programs / "calls").read_text().splitlines()
        calls: list[list[str]] = [json.loads(line) for line in lines]
        return [words for name, *words in calls if name == program]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(folder=tmp_path / "a clone", programs=tmp_path / "programs")
    job.folder.mkdir()
    job.programs.mkdir()
    (job.folder / "launch").symlink_to(ROOT / "launch")
    bodies = {"scontrol": _SCONTROL, "srun": _SRUN, "squeue": "print('RUNNING')", "sleep": ""}
    for name, body in bodies.items():
        (job.programs / name).write_text(_RECORD + body)
        (job.programs / name).chmod(0o755)
    return job


def python(job: Job) -> str:
    return f"--python={job.programs / 'srun'}"  # any program, since it is not run


def test_ranks_get_the_settings_word_by_word_and_the_scripts_environment(job: Job) -> None:
    done = job.run("pretrain", python(job), "run_dir=a b", "x=*")

    _, ranks = job.calls("srun")
    assert ranks[-3:] == ["launch/pretrain.py", "run_dir=a b", "x=*"]
    assert "--export=ALL" in ranks
    assert "nodes gpu-a1,login7, rendezvous at 10.0.0.7:20007" in done.stdout
    assert done.returncode == 0


def test_apptainer_runs_the_file_with_the_folder_and_the_mounts(job: Job) -> None:
    (job.folder / "image.sif").touch()

    job.run("pretrain", "--container=image.sif", "--mounts=/data,/scratch", "x=1")

    for words in job.calls("srun"):
        start = words.index("apptainer")
        assert words[start : start + 8] == [
            "apptainer", "exec", "--nv", "--bind", f"{job.folder},/data,/scratch", "--pwd",
            str(job.folder), "image.sif",
        ]  # fmt: skip


def test_in_a_container_the_code_is_the_folders_and_no_package_is_the_users(job: Job) -> None:
    (job.folder / "image.sif").touch()

    job.run("pretrain", "--container=image.sif", PYTHONPATH="/site")

    environment = json.loads((job.programs / "calls.environment").read_text())
    assert environment["PYTHONPATH"] == f"{job.folder}:/site"
    assert environment["PYTHONNOUSERSITE"] == "1"


def test_pyxis_gets_a_file_by_its_whole_path_and_an_image_by_its_name(job: Job) -> None:
    (job.folder / "image.sqsh").touch()

    for container in ("image.sqsh", "registry#team/image:1"):
        job.run("pretrain", f"--container={container}", "--mounts=/my data,/scratch")

    calls = job.calls("srun")
    images = [words[words.index("--export=ALL") + 1] for words in calls]
    file, name = (
        f"--container-image={job.folder}/image.sqsh",
        "--container-image=registry#team/image:1",
    )
    assert images == [file, file, name, name]
    binds = ",".join(f"{each}:{each}" for each in (job.folder, "/my data", "/scratch"))
    assert all(f"--container-mounts={binds}" in words for words in calls)
    assert all("--no-container-entrypoint" in words for words in calls)  # it would get `python`


def test_a_script_submitted_from_elsewhere_says_where_to_submit_it(job: Job) -> None:
    done = job.run("pretrain", SLURM_SUBMIT_DIR=str(job.programs))

    assert done.returncode == 2
    assert f"run sbatch in the folder of the repository, not in {job.programs}" in done.stderr


@pytest.mark.parametrize("program", ["build_shards", "encode_shards"])
def test_an_arrays_last_task_puts_itself_back_and_not_the_others(job: Job, program: str) -> None:
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "4",
            "SLURM_ARRAY_TASK_MAX": "5", "SLURM_ARRAY_TASK_COUNT": "2"}  # fmt: skip

    job.run(program, python(job), RANKS_CODE="137", REQUEUE_CODE="0", **task)

    assert job.calls("scontrol")[-1] == ["requeue", "7_5"]
    assert job.calls("squeue") == [["--noheader", "--jobs=7_5", "--format=%T"]]
    assert job.calls("srun")[-1][-4:] == [
        f"launch/{program}.py", "num_workers=4", "num_parts=2", "part_index=1",
    ]  # fmt: skip


def test_an_array_with_gaps_is_refused(job: Job) -> None:
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3",
            "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_COUNT": "2"}  # fmt: skip

    done = job.run("encode_shards", python(job), **task)

    assert done.returncode == 2
    assert "--array: give one range without gaps" in done.stderr


def test_a_failure_keeps_its_code_if_slurm_cannot_requeue(job: Job) -> None:
    done = job.run("pretrain", python(job), RANKS_CODE="137")

    assert done.returncode == 137
    assert "not requeued: submit the job again" in done.stderr


def test_where_slurm_takes_no_job_back_the_ranks_go_on_after_the_warning(job: Job) -> None:
    done = job.run("build_shards", python(job), WARN="1")

    assert "the time limit is near" in done.stderr
    assert "not requeued: submit the job again" in done.stderr
    assert "ranks ended with 0" in done.stdout
    assert done.returncode == 0


def test_only_failures_in_a_row_are_counted(job: Job) -> None:
    codes = {"RANKS_CODE": "1", "REQUEUE_CODE": "0"}
    starts = [0, 1, 3, 4, 5]  # start 2 did not fail

    ends = [job.run("pretrain", python(job), SLURM_RESTART_COUNT=str(start), **codes).stderr
            for start in starts]  # fmt: skip

    assert ["3 attempts in a row" in end for end in ends] == [False, False, False, False, True]


def test_a_run_that_could_not_put_its_job_back_has_the_script_do_so(job: Job) -> None:
    ending = job.folder / "outputs" / "slurm-7" / "ending-0.txt"
    ending.parent.mkdir(parents=True)
    ending.write_text("75\nrequeue\n")

    job.run("pretrain", python(job), RANKS_CODE="75", REQUEUE_CODE="0")

    assert job.calls("scontrol")[-1] == ["requeue", "7"]


@pytest.mark.parametrize(
    ("code", "message"),
    [(2, "pretrain: training.steps=0: must be at least 1\n"), (75, "")],
    ids=["refused", "stopped by a person"],
)
def test_how_the_first_rank_ended_counts_though_srun_ended_the_others(
    job: Job, code: int, message: str
) -> None:
    ending = job.folder / "outputs" / "slurm-7" / "ending-0.txt"
    ending.parent.mkdir(parents=True)
    ending.write_text(f"{code}\n{message}")

    done = job.run("pretrain", python(job), RANKS_CODE="143", REQUEUE_CODE="0")

    assert done.returncode == code
    assert done.stderr == message
    assert not job.calls("squeue")
