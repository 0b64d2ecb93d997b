"""Secrets of the environment and of locations are written nowhere."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.config.schema import tracked_settings
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.runs.recorded_settings import write_run
from ernie_vilg.tracking.tracker import RunTracker
from ernie_vilg.tracking.wandb_process import Orders, WandbProcess
from launch.drills.data_set import DataSet, make_data_set
from tests.launch.test_pretrain import ROOT, settings
from tests.tracking.wandb_servers import black_hole, failing_server
from tests.training.runs import tiny_run

KEY = "c0ffee0123456789c0ffee0123456789c0ffee42"  # as long as W&B's keys are
IN_ENVIRONMENT = {
    "WANDB_API_KEY": KEY,
    "AWS_SECRET_ACCESS_KEY": "canary-of-aws",
    "HF_TOKEN": "canary-of-the-hub",
    "SOME_PASSWORD": "canary-of-the-shell",
}
IN_A_URL = "canary-of-the-url"


def leaks(folder: Path) -> list[str]:
    """Return the files that hold a secret, with the secret."""
    secrets = [*IN_ENVIRONMENT.values(), IN_A_URL]
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [
        f"{path}: {secret}"
        for path in files
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]


def run_program(words: list[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run the training program and keep all its output in a file."""
    with log.open("wb") as file:
        return subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"))


def test_a_run_with_secrets_in_its_environment_writes_none(
    data_set: DataSet, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    with black_hole() as address:
        words = settings(
            data_set, folder / "run", "tracking.wandb_mode=online", "tracking.finish_seconds=2"
        )
        exit_code = run_program(
            words, folder / "log", {**IN_ENVIRONMENT, "WANDB_BASE_URL": address}
        )

    assert exit_code == 0, (folder / "log").read_text()[-3000:]
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    assert leaks(folder) == []


@pytest.mark.slow  # it tries the address several times
def test_the_password_of_a_location_is_not_in_what_a_run_says(
    data_set: DataSet, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    location = f"https://user:{IN_A_URL}@127.0.0.1:9/shards"  # nothing listens there
    words = settings(
        data_set,
        folder / "run",
        f"data.token_shards={location}",
        f"data.loader.cache_dir={folder / 'cache'}",
    )

    exit_code = run_program(words, folder / "log", IN_ENVIRONMENT)

    assert exit_code != 0
    assert "127.0.0.1:9/shards" in (folder / "log").read_text()
    assert leaks(folder) == []


def test_an_unexpected_error_does_not_repeat_the_command_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig as Config\n"
        "from launch.support.program import program\n"
        "@program('train_image_tokenizer', Config)\n"
        "def main(config): raise RuntimeError('nobody foresaw this')\n"
        "main()\n"
    )
    words = [
        "image_tokenizer=quickstart",
        f"shards=https://user:{IN_A_URL}@host/shards",
        "run_dir=r",
    ]
    words.append("loader.cache_dir=c")

    exit_code = run_program([str(program), *words], tmp_path / "log", {})

    assert exit_code == 1
    assert "RuntimeError: nobody foresaw this" in (tmp_path / "log").read_text()
    assert leaks(tmp_path) == []


def test_wandb_is_given_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B fails to reach its server and then keeps the run offline."""
    for name, value in {**IN_ENVIRONMENT, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = tiny_run(tmp_path, steps=2)
    location = f"https://user:{IN_A_URL}@host/shards?token={IN_A_URL}"
    loader = replace(config.data.loader, cache_dir=str(tmp_path / "cache"))
    config = replace(
        config,
        data=replace(config.data, token_shards=location, loader=loader),
        tracking=TrackingConfig(wandb_mode="disabled"),
    )
    write_run(config)
    tracker = RunTracker(config, step=0)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    with failing_server() as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        process = WandbProcess(
            Orders(
                run_dir=config.run_dir,
                metrics="metrics.jsonl",
                mode="online",
                project="test",
                name="test",
                init_seconds=1.0,
                finish_seconds=60.0,
                settings=tracked_settings(config),
            )
        )
        process.close()

    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert leaks(run_dir) == []
