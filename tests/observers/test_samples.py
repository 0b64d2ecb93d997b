"""A round of samples leaves a picture, captions and figures, or nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ernie_vilg.config.pretrain import PretrainConfig, SamplesConfig
from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.observers.samples import draw_samples
from launch.drills.data_set import CODEBOOK_SIZE, GRID_SIZE, DataSet, make_data_set
from tests.training.runs import tiny_run

NUM_PAIRS = 3


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data_set: DataSet, tmp_path: Path) -> PretrainConfig:
    run = tiny_run(tmp_path, steps=2)
    return replace(
        run,
        model=replace(
            run.model,
            text_vocab_size=320,
            text_length=12,
            codebook_size=CODEBOOK_SIZE,
            image_grid_size=GRID_SIZE,
        ),
        data=replace(
            run.data,
            text_tokenizer=str(data_set.text_tokenizer),
            image_tokenizer=str(data_set.image_tokenizer),
        ),
        samples=SamplesConfig(every=1, pairs=str(data_set.pairs), count=NUM_PAIRS),
    )


def test_a_round_leaves_pictures_captions_and_the_use_of_the_codebook(
    config: PretrainConfig,
) -> None:
    model = build_transformer(config.model)
    initialize(model.named_parameters(), config.model, seed=0)

    samples = draw_samples(config, 2, model.state_dict())

    assert samples is not None
    path = Path(config.run_dir) / "samples" / "step_00000002.png"
    assert samples.pictures == {"samples": path}
    with Image.open(path) as grid:
        assert grid.size == (NUM_PAIRS * 68 + 4, 2 * 68 + 4)  # 64 pixels and a gap of 4
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert samples.captions["samples"].splitlines() == [
        f"{number}. {line['caption']} | {line['written']}"
        for number, line in enumerate(lines, start=1)
    ]
    assert set(samples.metrics) == {
        f"samples/{whose}{name}"
        for whose in ("", "true_")
        for name in ("codebook_usage", "perplexity", "code_entropy")
    }
    # At least one code, and at most one per slot of three grids.
    assert 1 / CODEBOOK_SIZE <= samples.metrics["samples/codebook_usage"] <= 1
    assert samples.metrics["samples/perplexity"] <= CODEBOOK_SIZE


def test_a_round_that_is_stopped_leaves_nothing(config: PretrainConfig) -> None:
    model = build_transformer(config.model)
    initialize(model.named_parameters(), config.model, seed=0)

    assert draw_samples(config, 2, model.state_dict(), lambda: True) is None
    assert not Path(config.run_dir).exists()
