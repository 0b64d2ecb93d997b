"""Shards, tokenizers and a model that do not belong together are refused, and named."""

from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.config.pretrain import PretrainDataConfig
from ernie_vilg.text_tokenizer import write_text_tokenizer
from ernie_vilg.training.lineage import check_lineage
from ernie_vilg.vqgan.weights import save_image_tokenizer
from tests.training.data_set import (
    CODEBOOK_SIZE,
    GRID_SIZE,
    DataSet,
    make_data_set,
    text_model,
    untrained_vqgan,
)

MODEL = ModelConfig(
    hidden_size=8,
    num_layers=1,
    num_heads=1,
    text_vocab_size=320,
    text_length=12,
    codebook_size=CODEBOOK_SIZE,
    image_grid_size=GRID_SIZE,
)
END_TO_END = replace(MODEL, reconstructor=ReconstructorConfig(kind="end_to_end"))


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data_set_with_pixels(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("pixels"), num_pairs=4, keep_pixels=True)


def settings_of(data_set: DataSet) -> PretrainDataConfig:
    return PretrainDataConfig(
        token_shards=str(data_set.token_shards),
        text_tokenizer=str(data_set.text_tokenizer),
        image_tokenizer=str(data_set.image_tokenizer),
    )


def test_what_belongs_together_is_accepted(data_set: DataSet) -> None:
    lineage = check_lineage(settings_of(data_set), MODEL)

    assert lineage.manifest.num_samples == 24
    assert lineage.manifest.lineage["text_tokenizer"] == lineage.text_tokenizer
    assert lineage.manifest.lineage["image_tokenizer"] == lineage.image_tokenizer


def test_another_text_tokenizer_is_refused(data_set: DataSet, tmp_path: Path) -> None:
    write_text_tokenizer(tmp_path, text_model(["别的文字", "另一个"], data_set), {})
    other = replace(settings_of(data_set), text_tokenizer=str(tmp_path))

    with pytest.raises(ValueError, match="encoded with another text_tokenizer"):
        check_lineage(other, MODEL)


def test_another_image_tokenizer_is_refused(data_set: DataSet, tmp_path: Path) -> None:
    save_image_tokenizer(untrained_vqgan(seed=1), tmp_path / "other")
    other = replace(settings_of(data_set), image_tokenizer=str(tmp_path / "other"))

    with pytest.raises(ValueError, match="encoded with another image_tokenizer"):
        check_lineage(other, MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 32}, "set model.codebook_size=16"),
        ({"image_grid_size": 8}, "set model.image_grid_size=4"),
        ({"text_vocab_size": 100}, "model.text_vocab_size=100 is below the 300 pieces"),
    ],
)
def test_a_model_of_other_sizes_is_refused(
    data_set: DataSet, change: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_lineage(settings_of(data_set), replace(MODEL, **change))


def test_image_shards_are_no_token_shards(data_set: DataSet) -> None:
    image_shards = data_set.token_shards.with_name("image_shards")
    other = replace(settings_of(data_set), token_shards=str(image_shards))

    with pytest.raises(ValueError, match="holds image shards where token shards are needed"):
        check_lineage(other, MODEL)


def test_end_to_end_needs_shards_that_keep_pixels(data_set: DataSet) -> None:
    with pytest.raises(ValueError, match=r"keep no pixels: .* keep_pixels=true .*kind=two_stage"):
        check_lineage(settings_of(data_set), END_TO_END)


def test_the_decoder_is_told_the_image_tokenizers_architecture(
    data_set_with_pixels: DataSet,
) -> None:
    lineage = check_lineage(settings_of(data_set_with_pixels), END_TO_END)

    assert lineage.image_tokenizer_config == untrained_vqgan(seed=0).config


def test_a_decoder_of_another_architecture_is_refused(data_set_with_pixels: DataSet) -> None:
    other = replace(untrained_vqgan(seed=0).config, base_channels=4)
    model = replace(MODEL, reconstructor=ReconstructorConfig(kind="end_to_end", decoder=other))

    with pytest.raises(ValueError, match="base_channels=4 where it has 8; set "):
        check_lineage(settings_of(data_set_with_pixels), model)
