"""A health measurement leaves figures and a picture, and changes nothing of the run."""

import json
import math
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ernie_vilg.config.health import HealthConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.observers.health import measure_health
from launch.drills.data_set import CODEBOOK_SIZE, GRID_SIZE, DataSet, make_data_set
from launch.support.composition import compose_program

MODEL = ModelConfig(
    hidden_size=16,
    num_layers=3,
    num_heads=2,
    text_vocab_size=320,
    text_length=12,
    codebook_size=CODEBOOK_SIZE,
    image_grid_size=GRID_SIZE,
)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data_set: DataSet, tmp_path: Path) -> PretrainConfig:
    run: PretrainConfig = compose_program("pretrain", ["experiment=quickstart"])
    return replace(
        run,
        run_dir=str(tmp_path / "run"),
        model=MODEL,
        data=replace(
            run.data,
            text_tokenizer=str(data_set.text_tokenizer),
            image_tokenizer=str(data_set.image_tokenizer),
        ),
        health=HealthConfig(every=1, pairs=str(data_set.pairs), count=3),
    )


def fresh_weights() -> dict[str, Tensor]:
    model = build_transformer(MODEL)
    initialize(model.named_parameters(), MODEL, seed=0)
    return model.state_dict()


def test_it_leaves_figures_a_picture_and_the_captions(config: PretrainConfig) -> None:
    report = measure_health(config, 40, fresh_weights())

    assert report is not None
    assert set(report.metrics) == {
        "health/loss_text_to_image",
        "health/loss_image_to_text",
        "health/gradient_norm_text_to_image",
        "health/gradient_norm_image_to_text",
        "health/gradient_cosine",
        "health/gradient_cosine_embedding",
        "health/gradient_cosine_early_blocks",
        "health/gradient_cosine_middle_blocks",
        "health/gradient_cosine_late_blocks",
        "health/gradient_cosine_head",
        "health/suggested_text_to_image_weight",
        "health/suggested_image_to_text_weight",
        "health/text_log_likelihood_given_image",
        "health/text_log_likelihood_given_drawing",
        "health/image_log_likelihood_given_text",
        "health/image_log_likelihood_given_writing",
        "health/round_trip_caption_rouge_l",
        "health/round_trip_caption_exact",
        "health/drawn_code_agreement",
        "health/round_trip_code_agreement",
    }
    assert all(math.isfinite(value) for value in report.metrics.values())
    # An untrained model knows nothing: about the logarithm of the number of choices.
    assert report.metrics["health/loss_text_to_image"] == pytest.approx(
        math.log(CODEBOOK_SIZE), rel=0.05
    )
    assert report.metrics["health/loss_image_to_text"] == pytest.approx(math.log(320), rel=0.05)
    with Image.open(report.pictures["health"]) as picture:
        assert picture.format == "PNG"
    assert len(report.captions["health"].splitlines()) == 3
    record = json.loads((Path(config.run_dir) / "health" / "step_00000040.json").read_text())
    assert record["metrics"] == report.metrics
    assert [set(pair) for pair in record["pairs"]] == [
        {"caption", "rewritten_for_its_drawing", "written"}
    ] * 3


def test_it_changes_neither_weights_nor_random_numbers(config: PretrainConfig) -> None:
    weights = fresh_weights()
    before = {name: value.clone() for name, value in weights.items()}
    state = torch.get_rng_state()

    first = measure_health(config, 40, weights)
    second = measure_health(config, 40, weights)

    assert all(value.equal(before[name]) for name, value in weights.items())
    assert all(value.grad is None for value in weights.values())
    assert torch.get_rng_state().equal(state)
    assert first is not None
    assert second is not None
    assert first.metrics == second.metrics


@pytest.mark.parametrize("polls", [1, 2, 20], ids=["at once", "while drawing", "later"])
def test_a_measurement_that_is_stopped_leaves_nothing(config: PretrainConfig, polls: int) -> None:
    asked = count(1)

    assert measure_health(config, 40, fresh_weights(), lambda: next(asked) >= polls) is None

    assert next(asked) == polls + 1
    assert not (Path(config.run_dir) / "health").exists()
