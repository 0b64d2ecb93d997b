"""A run's settings take from its tokenizers the sizes that are null."""

import logging
import sys
from pathlib import Path

import pytest

from ernie_vilg.config.pretrain import PretrainConfig
from launch.drills.data_set import CODEBOOK_SIZE, GRID_SIZE, DataSet, make_data_set
from launch.support.composition import compose_program
from launch.support.program import program

UNSET = ["model.text_vocab_size=null", "model.codebook_size=null", "model.image_grid_size=null"]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data_set(tmp_path_factory.mktemp("data"), num_pairs=4)


def options(text_tokenizer: Path, image_tokenizer: Path) -> list[str]:
    return [
        "experiment=quickstart",
        f"data.text_tokenizer={text_tokenizer}",
        f"data.image_tokenizer={image_tokenizer}",
    ]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("pretrain", []),
        ("drill", []),
        ("plan", ["num_gpus=8", "gpu=h100-80gb"]),
        ("submit", ["cluster=slurm"]),
    ],
)
def test_null_sizes_follow_in_every_program_of_a_run(
    data_set: DataSet, name: str, more: list[str]
) -> None:
    folders = options(data_set.text_tokenizer, data_set.image_tokenizer)

    model = compose_program(name, [*folders, *UNSET, *more]).model

    # The data set's text tokenizer has 300 ids.
    found = (model.text_vocab_size, model.codebook_size, model.image_grid_size)
    assert found == (384, CODEBOOK_SIZE, GRID_SIZE)


def test_a_size_that_is_set_stays(data_set: DataSet) -> None:
    folders = options(data_set.text_tokenizer, data_set.image_tokenizer)

    model = compose_program("pretrain", [*folders, "model.codebook_size=null"]).model

    assert (model.text_vocab_size, model.codebook_size) == (336, CODEBOOK_SIZE)


def test_sizes_that_are_left_out_of_a_file_follow(data_set: DataSet, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    own = "hidden_size: 16\nnum_layers: 1\nnum_heads: 2\ntext_length: 8\n"
    (tmp_path / "model" / "own.yaml").write_text(own)
    folders = options(data_set.text_tokenizer, data_set.image_tokenizer)

    words = [*folders, f"hydra.searchpath=[{tmp_path}]", "model=own"]
    model = compose_program("pretrain", words).model

    assert (model.text_vocab_size, model.image_grid_size) == (384, GRID_SIZE)


def test_a_preset_needs_no_tokenizer(tmp_path: Path) -> None:
    folders = options(tmp_path / "nothing", tmp_path / "nothing")

    model = compose_program("plan", [*folders, "num_gpus=8", "gpu=h100-80gb"]).model

    assert (model.text_vocab_size, model.codebook_size) == (336, 1024)


def test_a_missing_number_of_a_missing_tokenizer_is_one_error(tmp_path: Path) -> None:
    folders = options(tmp_path / "text", tmp_path / "image")

    with pytest.raises(
        ValueError, match=r"model\.codebook_size is not set and follows data\.image_tokenizer="
    ):
        compose_program("pretrain", [*folders, "model.codebook_size=null"])


def test_the_log_begins_with_what_followed(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @program("pretrain", PretrainConfig)
    def main(config: PretrainConfig) -> None:
        logging.getLogger(__name__).info("main has %d codes", config.model.codebook_size)

    folders = options(data_set.text_tokenizer, data_set.image_tokenizer)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *folders, "model.codebook_size=null"])

    main()

    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(
        f"model.codebook_size={CODEBOOK_SIZE} follows data.image_tokenizer="
        f"{data_set.image_tokenizer}"
    )
    assert second.endswith(f"main has {CODEBOOK_SIZE} codes")
