"""Shards, tokenizers and a model that do not belong together are refused, and named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.config.data import MixtureDataSetConfig, PretrainDataConfig
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.preparation.lineage import check_lineage
from ernie_vilg.storage.shard_manifest import read_manifest, write_manifest
from ernie_vilg.text_tokenizer import write_text_tokenizer
from ernie_vilg.vqgan.weights import save_image_tokenizer
from launch.drills.data_set import (
    CODEBOOK_SIZE,
    GRID_SIZE,
    DataSet,
    encode_pairs,
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

    (only,) = lineage.data_sets
    assert (only.name, only.location) == ("main", str(data_set.token_shards))
    assert only.manifest.num_samples == 24
    assert only.manifest.lineage["text_tokenizer"] == lineage.text_tokenizer
    assert only.manifest.lineage["image_tokenizer"] == lineage.image_tokenizer


def mixed(settings: PretrainDataConfig, **token_shards: Path) -> PretrainDataConfig:
    """Return the settings with a mixture of folders instead of one."""
    mixture = {
        name: MixtureDataSetConfig(token_shards=str(folder), weight=1.0)
        for name, folder in token_shards.items()
    }
    return replace(settings, token_shards=None, mixture=mixture)


def test_every_data_set_of_a_mixture_is_there_in_the_order_of_names(data_set: DataSet) -> None:
    folder = data_set.token_shards
    lineage = check_lineage(mixed(settings_of(data_set), second=folder, first=folder), MODEL)

    assert [item.name for item in lineage.data_sets] == ["first", "second"]


def test_every_data_set_of_a_mixture_is_checked(
    data_set: DataSet, data_set_with_pixels: DataSet
) -> None:
    settings = mixed(
        settings_of(data_set), cc=data_set.token_shards, shapes=data_set_with_pixels.token_shards
    )

    with pytest.raises(
        ValueError,
        match=r"^data\.mixture\.shapes\.token_shards=\S+ were encoded with another text_tokenizer",
    ):
        check_lineage(settings, MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"settings": {"image_size": 128, "grid_size": GRID_SIZE, "codebook_size": 16}},
            "have image_size=128 in their manifest where their image tokenizer .* has 64",
        ),
        ({"shards": ()}, "hold no samples: encode them again"),
    ],
    ids=["another picture size", "empty"],
)
def test_a_manifest_that_cannot_be_is_refused(
    data_set: DataSet, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    manifest = read_manifest(data_set.token_shards, "token")
    write_manifest(tmp_path, replace(manifest, **change))
    settings = mixed(settings_of(data_set), cc=data_set.token_shards, other=tmp_path)

    with pytest.raises(ValueError, match=rf"data\.mixture\.other\.token_shards=\S+ {message}"):
        check_lineage(settings, MODEL)


def test_a_url_that_cannot_be_read_is_named_without_its_password(data_set: DataSet) -> None:
    other = replace(
        settings_of(data_set),
        token_shards="https://user:secret@localhost:9/shards?token=secret",
        loader=LoaderConfig(cache_dir="unused", max_attempts=1),
    )

    with pytest.raises(ValueError, match=r"^data\.token_shards: https://localhost:9/") as refusal:
        check_lineage(other, MODEL)

    assert "secret" not in str(refusal.value)


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
        (
            {"codebook_size": 32},
            r"model.codebook_size=32 where data.image_tokenizer=\S+ has 16: "
            "set model.codebook_size=16, or null",
        ),
        ({"image_grid_size": 8}, "set model.image_grid_size=4"),
        (
            {"text_vocab_size": 100},
            "model.text_vocab_size=100 is below the 300 ids of data.text_tokenizer=",
        ),
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


def test_every_data_set_of_a_mixture_must_keep_pixels(
    data_set_with_pixels: DataSet, tmp_path: Path
) -> None:
    encode_pairs(data_set_with_pixels, data_set_with_pixels.pairs, tmp_path / "token_shards")
    settings = mixed(
        settings_of(data_set_with_pixels),
        drawn=data_set_with_pixels.token_shards,
        plain=tmp_path / "token_shards",
    )

    with pytest.raises(
        ValueError, match=r"data\.mixture\.plain\.token_shards=\S+ keep no pixels: .* output_dir="
    ):
        check_lineage(settings, END_TO_END)


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
