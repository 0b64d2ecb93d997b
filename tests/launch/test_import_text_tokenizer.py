"""The programs that make text tokenizers, and everything that uses an imported one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.audit.audit import audit_shards
from data_pipelines.audit.checks import Outcome
from data_pipelines.encoding.encode import encode_image_shards
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.generation.pipeline import ErnieVilg
from ernie_vilg.model.weights import save_weights
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.text_tokenizer import DESCRIPTION_FILE, TextTokenizer
from ernie_vilg.vqgan.weights import save_image_tokenizer
from tests.data_pipelines.encoding.image_shards import write_images
from tests.data_pipelines.encoding.test_encode import (
    array_of,
    config,
    samples_of,
    tiny_vqgan,
)
from tests.launch.test_data_programs import run, run_well
from tests.model.tiny import tiny_model

CAPTIONS = [["红色", "绿色的圆"], ["A red circle, 3.5 cm"], ["龘色", "hello 😀", "Café"]]
ENTRIES = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"红绿色的圆,.a", "red", "circle", "cm", "hello",
    "3", "5", "caf", "##e",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with image shards, a vocabulary, and the imported tokenizer in `text`."""
    folder = tmp_path_factory.mktemp("imported")
    write_images(folder / "images", CAPTIONS)
    (folder / "vocab.txt").write_text("\n".join(ENTRIES), encoding="utf-8")
    run_well(
        "import_text_tokenizer",
        f"vocabulary={folder}/vocab.txt",
        f"shards={folder}/images",
        f"output_dir={folder}/text",
    )
    save_image_tokenizer(tiny_vqgan(8), folder / "vqgan")
    return folder


def test_the_import_records_its_origin_and_figures(folder: Path) -> None:
    recorded = read_json(folder / "text" / DESCRIPTION_FILE)

    assert recorded["kind"] == "wordpiece"
    assert recorded["vocab_size"] == 260 + len(ENTRIES) - 5
    vocabulary = recorded["made_from"]["vocabulary"]
    assert vocabulary["entries"] == len(ENTRIES)
    assert vocabulary["special_entries"] == ENTRIES[:5]
    assert (
        recorded["made_from"]["image_shards"] == read_manifest(folder / "images", "image").digest()
    )
    assert recorded["made_from"]["captions"] == {"read": 6, "measured": 6}
    assert recorded["figures"]["captions_with_byte_ids"] == pytest.approx(2 / 6)
    assert "WordPiece vocabulary" in (folder / "text" / "README.md").read_text(encoding="utf-8")


def test_shards_encoded_with_it_pass_every_check(folder: Path) -> None:
    manifest = encode_image_shards(config(folder))

    tokenizer = TextTokenizer.load(folder / "text")
    assert manifest.lineage["text_tokenizer"] == tokenizer.sha256
    assert manifest.settings["text_vocab_size"] == tokenizer.vocab_size
    first = array_of(samples_of(folder, "tokens", "token")[0]["text.npy"]).tolist()
    assert first == [*tokenizer.encode("红色"), 3, *tokenizer.encode("绿色的圆")]
    audit = audit_shards(
        AuditShardsConfig(
            image_shards=str(folder / "images"),
            token_shards=str(folder / "tokens"),
            text_tokenizer_dir=str(folder / "text"),
            text_length=16,
            output_dir=str(folder / "audit"),
        ),
        folder,
    )
    outcomes = {check.name: check.outcome for check in audit.checks if check.name in TEXT_CHECKS}
    assert outcomes == dict.fromkeys(TEXT_CHECKS, Outcome.PASSED), audit.checks


TEXT_CHECKS = ("text_ids", "text_of_captions", "round_trip", "truncation")


def test_a_model_draws_and_captions_with_it(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = TextTokenizer.load(folder / "text")
    (tmp_path / "text_tokenizer").mkdir()
    for path in (folder / "text").iterdir():
        (tmp_path / "text_tokenizer" / path.name).write_bytes(path.read_bytes())
    vqgan = tiny_vqgan(8)
    save_image_tokenizer(vqgan, tmp_path / "image_tokenizer")
    model_config = ModelConfig(
        hidden_size=16, num_layers=2, num_heads=2, text_vocab_size=384, text_length=6,
        codebook_size=vqgan.config.codebook_size, image_grid_size=vqgan.config.grid_size,
    )  # fmt: skip
    save_weights(tmp_path, model_config, tiny_model(model_config).state_dict(), {"step": 1})

    model = ErnieVilg.from_pretrained(tmp_path)

    ids = model.text_ids(["红色 circle"]).tolist()
    assert ids == [[*tokenizer.encode("红色circle"), 3, 0, 0]]
    assert model.captions(torch.tensor(ids)) == ["红色circle"]
    (drawn,) = model.generate(["红色 circle"])
    (written,) = model.caption([Image.fromarray(np.zeros((8, 8, 3), np.uint8))])
    assert drawn.codes.max() < vqgan.config.codebook_size
    assert written.caption


def test_another_file_than_named_is_refused(folder: Path, tmp_path: Path) -> None:
    result = run(
        "import_text_tokenizer",
        f"vocabulary={folder}/vocab.txt",
        f"vocabulary_sha256={'0' * 64}",
        f"output_dir={tmp_path}/text",
    )

    assert result.returncode == 2
    assert "correct vocabulary_sha256" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_training_writes_a_card_of_held_out_captions(tmp_path: Path) -> None:
    captions = [[f"第{number}张红色的照片"] for number in range(60)]
    write_images(tmp_path / "images", captions)

    said = run_well(
        "train_text_tokenizer",
        f"shards={tmp_path}/images",
        f"output_dir={tmp_path}/text",
        "vocab_size=300",
        "held_out_fraction=0.3",
        "sample_captions=20",
    )

    recorded = read_json(tmp_path / "text" / DESCRIPTION_FILE)
    counts, made_from = recorded["made_from"]["captions"], recorded["made_from"]
    assert (counts["read"], counts["trained_on"], counts["cut"]) == (60, 20, 0)
    assert 5 < counts["held_out"] == counts["measured"] < 35
    assert recorded["figures"]["captions"] == counts["measured"]
    assert recorded["figures"]["fits_text_length"]["64"] == 1.0
    assert made_from["image_shards"] == read_manifest(tmp_path / "images", "image").digest()
    assert made_from["settings"]["seed"] == 0
    assert made_from["versions"].keys() == {"ernie_vilg", "sentencepiece"}
    assert "captions: 60 read, " in said
    assert "characters with a piece: " in said
    card = (tmp_path / "text" / "README.md").read_text(encoding="utf-8")
    assert f"| captions.measured | {counts['measured']} |" in card
