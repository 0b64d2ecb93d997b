"""The training program: equal under every launcher, killed and resumed, exported and used."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from ernie_vilg.system.ports import free_port
from launch.drills.data_set import CODEBOOK_SIZE, GRID_SIZE, DataSet, make_data_set
from launch.support.program import CONF_FOLDER
from tests.tracking.wandb_file import logged_history

ROOT = CONF_FOLDER.parent
PROGRAMS = Path(sys.executable).parent

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"))


def settings(data_set: DataSet, run_dir: Path, *more: str) -> list[str]:
    return [
        "launch/pretrain.py",
        "experiment=quickstart",
        f"run_dir={run_dir}",
        "precision=fp32",
        "model.hidden_size=16",
        "model.num_layers=2",
        "model.num_heads=2",
        f"model.codebook_size={CODEBOOK_SIZE}",
        f"model.image_grid_size={GRID_SIZE}",
        f"data.token_shards={data_set.token_shards}",
        f"data.text_tokenizer={data_set.text_tokenizer}",
        f"data.image_tokenizer={data_set.image_tokenizer}",
        f"samples.pairs={data_set.pairs}",
        "samples.count=2",
        "samples.every=4",
        "parallelism.micro_batch_size=4",
        "parallelism.global_batch_size=8",
        "optimizer.warmup_steps=2",
        "training.steps=4",
        "checkpoint.every=2",
        "training.log_every=1",
        *more,
    ]


def launcher(name: str) -> list[str]:
    port = str(free_port())
    return {
        "deepspeed": [str(PROGRAMS / "deepspeed"), "--num_gpus", "2", "--master_port", port],
        "torchrun": [str(PROGRAMS / "torchrun"), "--nproc_per_node=2", f"--master_port={port}"],
        "python": [sys.executable],
    }[name]


def start(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = f"{PROGRAMS}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.fixture(scope="module")
def finished_run(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that the deepspeed launcher started on two ranks."""
    run_dir = tmp_path_factory.mktemp("run") / "run"
    start([*launcher("deepspeed"), *settings(data_set, run_dir)])
    return run_dir


def test_a_run_leaves_metrics_checkpoints_samples_and_a_wandb_run(finished_run: Path) -> None:
    assert len(losses(finished_run)) == 4
    assert {path.name for path in (finished_run / "checkpoints").iterdir()} == {
        "step_00000002",
        "step_00000004",
        "latest.json",
    }
    with Image.open(finished_run / "samples" / "step_00000004.png") as picture:
        assert picture.width > 2 * 64
    captions = (finished_run / "samples" / "step_00000004.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in captions] == [{"caption", "written"}] * 2
    lines = (finished_run / "metrics.jsonl").read_text().splitlines()
    drawn = [json.loads(line) for line in lines if "loss" not in json.loads(line)]
    files = [entry["pictures"]["samples"]["file"] for entry in drawn if "pictures" in entry]
    assert files == ["samples/step_00000000.png", "samples/step_00000004.png"]
    assert 0 < drawn[-1]["samples/codebook_usage"] <= 1
    (path,) = (finished_run / "wandb").glob("offline-run-*/*.wandb")
    history = logged_history(path)
    assert [entry["loss"] for entry in history if "loss" in entry] == losses(finished_run)
    assert history[-1]["samples"]["caption"].startswith("1. ")


@pytest.mark.parametrize("name", ["torchrun", "python"])
def test_every_launcher_trains_alike(
    finished_run: Path, data_set: DataSet, tmp_path: Path, name: str
) -> None:
    observed = ["statistics.every=2", "profile.steps=[2,3]", "tracking.tensorboard=true"]
    done = start(
        [*launcher(name), *settings(data_set, tmp_path / "run", "samples.every=0", *observed)]
    )

    assert losses(tmp_path / "run") == pytest.approx(losses(finished_run), rel=1e-5)
    told = done.stdout + done.stderr
    assert told.count("0 of 24 captions (0.00%) are longer than model.text_length=15") == 1
    assert "profiles/step_00000002-00000003-rank_00000.json.gz" in told
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines if "statistics/" in line]
    assert [line["step"] for line in measured] == [2, 4]
    assert 0 < measured[1]["statistics/update_ratio/attention"] < 1
    assert len(measured[1]["statistics/largest_activation"]) == 3
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_killed_rank_stops_the_run_and_the_same_command_goes_on(
    finished_run: Path, data_set: DataSet, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    # Slow enough for a kill between two checkpoints: many log lines, and no end.
    command = settings(data_set, run_dir, "training.steps=100000", "samples.every=0")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.Popen(
        [*launcher("torchrun"), *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for(run_dir / "checkpoints" / "step_00000002")
    (rank,) = _descendants_with(run.pid, "LOCAL_RANK", "1")
    os.kill(rank, signal.SIGKILL)
    assert run.wait(timeout=60) != 0

    reached = len(losses(run_dir))
    start([*launcher("torchrun"), *settings(data_set, run_dir, f"training.steps={reached + 4}")])

    again = losses(run_dir)
    assert len(again) == reached + 4
    assert again[:2] == pytest.approx(losses(finished_run)[:2], rel=1e-5)


def test_the_weights_draw_and_caption(
    finished_run: Path, data_set: DataSet, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    start([sys.executable, "launch/export.py", f"run={finished_run}", f"output_dir={weights}"])
    prompts = "prompts=[左上角有一个红色的大圆形,右下角有一个蓝色的小三角形]"
    drawn = tmp_path / "drawn"
    start(
        [
            sys.executable,
            "launch/generate.py",
            f"weights={weights}",
            prompts,
            "images_per_prompt=2",
            f"output_dir={drawn}",
        ]
    )
    captions = tmp_path / "captions.jsonl"
    start(
        [
            sys.executable,
            "launch/caption.py",
            f"weights={weights}",
            f"images={data_set.pairs}/*.png",
            f"output={captions}",
        ]
    )

    lines = [json.loads(line) for line in (drawn / "generations.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["0_0.png", "0_1.png", "1_0.png", "1_1.png"]
    keys = {"prompt", "drawn_prompt", "file", "seed", "temperature", "top_k", "log_probability"}
    assert all(set(line) == keys for line in lines)
    for line in lines:
        with Image.open(drawn / line["file"]) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
    written = [json.loads(line) for line in captions.read_text().splitlines()]
    assert len(written) == 24
    assert all(set(line) == {"image", "caption", "seed", "log_probability"} for line in written)


def test_a_dry_run_of_the_10b_model_takes_a_minute_and_4_gb_at_most(tmp_path: Path) -> None:
    stages = "parallelism.pipeline_parallel_size=4"
    command = ["experiment=ernie_vilg_10b", "dry_run=true", "world_size=64", stages]
    with (tmp_path / "report").open("wb") as report:
        run = subprocess.Popen(
            [sys.executable, "launch/pretrain.py", *command], cwd=ROOT, stdout=report
        )
        _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)

    assert run.returncode == 0
    assert (
        usage.ru_utime + usage.ru_stime < 60
    )  # seconds of one core, independent of the machine's load
    assert usage.ru_maxrss < 4e6  # kB
    text = (tmp_path / "report").read_text()
    assert "10,002,632,704" in text  # parameters
    assert "FLOPs per token" in text
    for stage, ranks in enumerate(("0-15", "16-31", "32-47", "48-63")):
        assert re.search(rf"^ *{stage} +{ranks} ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dry_run=true", "world_size=63"], "world size 63 is no multiple of"),
        (["dry_run=true", "world_size=0"], "world_size=0: must be at least 1"),
        (["world_size=64"], "world_size=64 is for a dry run"),
    ],
    ids=["ranks of no whole replica", "no ranks", "ranks of a real run"],
)
def test_an_illegal_dry_run_is_one_message(words: list[str], message: str) -> None:
    run = subprocess.run(
        [sys.executable, "launch/pretrain.py", "experiment=ernie_vilg_10b", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def _wait_for(path: Path, timeout_seconds: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def _descendants_with(process_id: int, variable: str, value: str) -> list[int]:
    import psutil

    return [
        process.pid
        for process in psutil.Process(process_id).children(recursive=True)
        if process.environ().get(variable) == value
    ]
