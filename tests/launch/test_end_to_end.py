"""The end-to-end reconstructor: training, resume, export and drawing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.generation.pipeline import ErnieVilg
from launch.drills.data_set import DataSet, make_data_set
from launch.support.composition import compose_program
from tests.distributed import run_distributed
from tests.launch.test_pretrain import ROOT, launcher, settings, start
from tests.training.runs import pretrain_here

PROMPT = "左上角有一个红色的大圆形"

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"), keep_pixels=True)


def end_to_end(data_set: DataSet, run_dir: Path, *more: str) -> list[str]:
    return settings(
        data_set,
        run_dir,
        "model.reconstructor.kind=end_to_end",
        "objective.text_to_image_weight=3",
        "samples.every=0",
        "tracking.wandb_mode=disabled",
        *more,
    )


def train(launch: Launch, config: PretrainConfig) -> None:
    pretrain_here(launch, config)


@pytest.fixture(scope="module")
def resumed_run(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that stopped after 2 of 4 steps and resumed."""
    run_dir = tmp_path_factory.mktemp("run") / "run"
    _, *overrides = end_to_end(data_set, run_dir, "training.steps=2")
    run_distributed(train, 2, compose_program("pretrain", overrides))
    start([*launcher("torchrun"), *end_to_end(data_set, run_dir)])
    return run_dir


def test_two_ranks_train_resume_and_log_the_reconstruction(resumed_run: Path) -> None:
    lines = [json.loads(line) for line in (resumed_run / "metrics.jsonl").read_text().splitlines()]

    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        terms = (
            3 * line["loss_text_to_image"]
            + line["loss_image_to_text"]
            + line["loss_reconstruction"]
        )
        assert line["loss"] == pytest.approx(terms, rel=1e-5)
        assert line["loss_reconstruction"] > 0


def test_the_exported_weights_draw_with_the_reconstructor(
    resumed_run: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    start([sys.executable, "launch/export.py", f"run={resumed_run}", f"output_dir={weights}"])

    model = ErnieVilg.from_pretrained(weights)
    (result,) = model.generate([PROMPT])

    (decoded,) = model.decode_images(result.codes[None])
    assert result.image.size == decoded.size == (64, 64)
    assert result.image.tobytes() != decoded.tobytes(), "drawn by the image tokenizer instead"


def test_shards_without_pixels_are_refused_with_the_fix(tmp_path: Path) -> None:
    data_set = make_data_set(tmp_path / "data", num_pairs=4)
    run_dir = tmp_path / "run"

    done = subprocess.run(
        [sys.executable, *end_to_end(data_set, run_dir)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2, done.stderr
    assert f"output_dir={data_set.token_shards} keep_pixels=true" in done.stderr
    assert not list(run_dir.glob("[!.]*"))  # no file of a run
