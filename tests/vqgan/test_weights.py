"""A tokenizer's folder loads as the same tokenizer, or is refused with a reason."""

import json
from pathlib import Path

import pytest
import torch

from ernie_vilg import __version__
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.card import Card
from ernie_vilg.vqgan.settings_file import SETTINGS_FILE, WEIGHTS_FILE
from ernie_vilg.vqgan.weights import (
    CARD_FILE,
    load_image_tokenizer,
    read_card,
    save_image_tokenizer,
)

CONFIG = ImageTokenizerConfig(
    image_size=16,
    codebook_size=8,
    embedding_size=4,
    base_channels=8,
    channel_multipliers=(1,),
    num_residual_blocks=0,
    patch_size=8,
    normalization="channel",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_image_tokenizer(VQGAN(CONFIG), tmp_path / "weights")
    return tmp_path / "weights"


def test_loaded_tokenizer_is_the_saved_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VQGAN(CONFIG)
    saved = save_image_tokenizer(model, tmp_path / "weights")

    loaded, sha256 = load_image_tokenizer(tmp_path / "weights")

    assert sha256 == saved == sha256_of_file(tmp_path / "weights" / WEIGHTS_FILE)
    assert loaded.config == CONFIG
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(loaded.encode(images), model.encode(images))


def test_loaded_tokenizer_is_frozen(folder: Path) -> None:
    model, _ = load_image_tokenizer(folder)

    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_weights_are_float32_whatever_they_were(tmp_path: Path) -> None:
    save_image_tokenizer(VQGAN(CONFIG).bfloat16(), tmp_path / "weights")

    model, _ = load_image_tokenizer(tmp_path / "weights")

    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_hash_names_the_settings_too(tmp_path: Path) -> None:
    # The same weights read with another normalisation would give other codes.
    torch.manual_seed(0)
    model = VQGAN(CONFIG)
    first = save_image_tokenizer(model, tmp_path / "first")
    model.config = ImageTokenizerConfig(**{**vars(CONFIG), "image_size": 32})

    assert save_image_tokenizer(model, tmp_path / "second") != first


def test_changed_byte_is_found(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)

    with pytest.raises(ValueError, match="differs from the SHA-256"):
        load_image_tokenizer(folder)


def test_edited_settings_are_found(folder: Path) -> None:
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    settings["config"]["normalization"] = "none"
    (folder / SETTINGS_FILE).write_text(json.dumps(settings))

    with pytest.raises(ValueError, match="was edited"):
        load_image_tokenizer(folder)


@pytest.mark.parametrize("name", [SETTINGS_FILE, WEIGHTS_FILE])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()

    with pytest.raises(ValueError, match=f"has no {name}"):
        load_image_tokenizer(folder)


def test_other_format_is_refused(folder: Path) -> None:
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    settings["format"] = "something else"
    (folder / SETTINGS_FILE).write_text(json.dumps(settings))

    with pytest.raises(ValueError, match="train or import the tokenizer again"):
        load_image_tokenizer(folder)


CARD = Card(
    lineage={"run": "outputs/emoji", "step": 1200, "average": True},
    figures={"psnr": 24.5, "codebook_usage": 0.75},
    code_counts=[5, 0, 1, 0, 0, 2, 0, 9],
)


def test_card_comes_back_and_changes_no_hash(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VQGAN(CONFIG)
    plain = save_image_tokenizer(model, tmp_path / "plain")

    sha256 = save_image_tokenizer(model, tmp_path / "weights", card=CARD)

    assert sha256 == plain
    assert read_card(tmp_path / "weights") == CARD
    assert read_card(tmp_path / "plain") == Card()


def test_folder_and_card_record_the_version(tmp_path: Path) -> None:
    save_image_tokenizer(VQGAN(CONFIG), tmp_path, overwrite=True)

    settings = json.loads((tmp_path / "image_tokenizer.json").read_text())
    assert settings["ernie_vilg_version"] == __version__
    assert (tmp_path / "README.md").read_text().endswith(f"Written by ernie_vilg {__version__}.\n")


def test_card_is_readable(tmp_path: Path) -> None:
    sha256 = save_image_tokenizer(VQGAN(CONFIG), tmp_path / "weights", card=CARD)

    text = (tmp_path / "weights" / CARD_FILE).read_text()

    assert sha256 in text
    assert "| PSNR (dB) | 24.5 |" in text
    assert "| step | 1200 |" in text
    assert "| counted codes | 17 |" in text
    assert "| channel_multipliers | [1] |" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("code_counts", [1, 2]),
        ("code_counts", [-1] * 8),
        ("figures", {"psnr": "good"}),
        ("lineage", 3),
    ],
)
def test_edited_card_is_refused(folder: Path, key: str, value: object) -> None:
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    (folder / SETTINGS_FILE).write_text(json.dumps({**settings, key: value}))

    with pytest.raises(ValueError, match="was edited"):
        read_card(folder)


def test_folder_that_may_not_be_replaced_stays(folder: Path) -> None:
    before = (folder / SETTINGS_FILE).read_bytes()

    with pytest.raises(ValueError, match="already exists"):
        save_image_tokenizer(VQGAN(CONFIG), folder, overwrite=False)

    assert (folder / SETTINGS_FILE).read_bytes() == before
