"""Sizes of the model that follow from its tokenizers, read from files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.preparation.followed_sizes import followed_size
from ernie_vilg.text_tokenizer import DESCRIPTION_FILE, FORMAT_VERSION, MODEL_FILE


def text_tokenizer(folder: Path, vocab_size: object) -> Path:
    """Write what a text tokenizer's folder records; the model itself is not read."""
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(b"")
    content = {"format_version": FORMAT_VERSION, "vocab_size": vocab_size}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("num_ids", "rows"), [(300, 384), (384, 384), (385, 512), (32_768, 32_768)]
)
def test_a_text_vocabulary_is_rounded_up_to_a_multiple_of_128(
    tmp_path: Path, num_ids: int, rows: int
) -> None:
    folder = text_tokenizer(tmp_path / "text", num_ids)

    found = followed_size("text_vocab_size", "data.text_tokenizer", folder)

    assert found.value == rows
    assert found.sentence == (
        f"model.text_vocab_size={rows} follows data.text_tokenizer={folder} ({num_ids} ids, "
        "rounded up to a multiple of 128)"
    )


@pytest.mark.parametrize("vocab_size", ["300", True, 4, None])
def test_a_vocabulary_that_is_no_number_of_ids_is_refused(
    tmp_path: Path, vocab_size: object
) -> None:
    folder = text_tokenizer(tmp_path / "text", vocab_size)

    with pytest.raises(InputError, match=r"text_tokenizer\.json has vocab_size .* above 4"):
        followed_size("text_vocab_size", "data.text_tokenizer", folder)


@pytest.mark.parametrize(
    ("name", "source", "file"),
    [
        ("text_vocab_size", "data.text_tokenizer", MODEL_FILE),
        ("codebook_size", "data.image_tokenizer", "image_tokenizer.json"),
    ],
)
def test_a_missing_tokenizer_is_one_error_with_both_ways_out(
    tmp_path: Path, name: str, source: str, file: str
) -> None:
    message = f"model.{name} is not set and follows {source}=.* has no {file}: name a folder .*"

    with pytest.raises(InputError, match=f"{message}; or set model.{name} to a number"):
        followed_size(name, source, tmp_path)


def test_sizes_are_read_without_torch() -> None:
    code = "import sys, ernie_vilg.preparation.followed_sizes; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
