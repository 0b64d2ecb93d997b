"""The evaluation program: from a weights folder to figures, and refusals of wrong settings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.model.initialization import initialize
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.model.weights import save_weights
from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.drawing import draw_scene
from ernie_vilg.shapes.scenes import all_scenes
from ernie_vilg.text_tokenizer import train_text_tokenizer, write_text_tokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import save_image_tokenizer
from launch.support.program import CONF_FOLDER
from tests.child_time import seconds_of_children


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model like the quickstart's, and three pairs."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("evaluate")
    scenes = [*all_scenes(1), *all_scenes(2)][::97]
    weights = root / "weights"
    weights.mkdir()
    text_config = TrainTextTokenizerConfig(
        shards="unused", output_dir="unused", vocab_size=512, max_piece_length=4
    )
    model = train_text_tokenizer((caption_of(scene) for scene in scenes), text_config)
    text_tokenizer = write_text_tokenizer(weights / "text_tokenizer", model, {})
    image_config = ImageTokenizerConfig(
        image_size=64, codebook_size=8, embedding_size=4, base_channels=8, patch_size=16,
        channel_multipliers=(1,), num_residual_blocks=0, normalization="channel",
    )  # fmt: skip
    save_image_tokenizer(VQGAN(image_config), weights / "image_tokenizer")
    config = ModelConfig(
        hidden_size=8, num_layers=1, num_heads=2, text_vocab_size=text_tokenizer.vocab_size,
        text_length=12, codebook_size=8, image_grid_size=4,
    )  # fmt: skip
    transformer = build_transformer(config)
    initialize(transformer.named_parameters(), config, seed=0)
    save_weights(weights, config, transformer.state_dict(), {"step": 0})

    (root / "pairs/images").mkdir(parents=True)
    lines = []
    for index, scene in enumerate(scenes[:3]):
        draw_scene(scene).save(root / f"pairs/images/{index}.png")
        pair = {"image": f"images/{index}.png", "caption": caption_of(scene)}
        lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    (root / "pairs/captions.jsonl").write_text("".join(lines), encoding="utf-8")
    return root


def evaluate(root: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    settings = [f"weights={root}/weights", f"pairs={root}/pairs", *words]
    return subprocess.run(
        [sys.executable, str(CONF_FOLDER.parent / "launch/evaluate.py"), *settings],
        capture_output=True,
        text=True,
        check=False,
    )


def test_untrained_model_is_judged_and_everything_is_written(folder: Path) -> None:
    done = evaluate(
        folder,
        f"output_dir={folder}/evaluation",
        "count=3",
        "batch_size=2",
        "retrieval.candidates=2",
        f"training_pairs={folder}/pairs",
    )

    assert done.returncode == 0, done.stderr
    scores = json.loads((folder / "evaluation/evaluation.json").read_text())
    assert 5 < scores["text_to_image"]["psnr_of_mean_picture"] < 30
    assert scores["retrieval"]["candidates"] == 2
    ranks = scores["retrieval"]["captions_of_pictures"]["text_given_image"]
    assert ranks["recall_at_5"] == 1.0
    assert "captions of pictures of 2, by text given image" in done.stderr
    assert scores["pairs"] == 3
    assert 0 <= scores["text_to_image"]["objects_correct"] < 1
    assert 0 <= scores["image_to_text"]["captions_correct"] < 1
    assert scores["image_tokenizer"]["codebook_usage"] in [n / 8 for n in range(1, 9)]
    records = (folder / "evaluation/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(records) == 3
    assert [json.loads(line).get("caption_rank") in (1, 2) for line in records] == [
        True, True, False,
    ]  # fmt: skip
    for name in ("originals", "drawn", "reconstructed"):
        assert len(list((folder / "evaluation" / name).glob("*.png"))) == 3

    again = evaluate(folder, f"output_dir={folder}/evaluation", "count=3")

    assert again.returncode == 2
    assert "already exists: set overwrite=true" in again.stderr


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("judge=someone", "judge=someone: choose shapes or none"),
        ("count=0", "count=0: must be at least 1"),
        ("count=many", "many"),
        ("retrieval.candidates=1", "retrieval.candidates=1 with count=200: set it from 2 to"),
        ("retrieval.candidates=201", "retrieval.candidates=201 with count=200: set it from 2 to"),
        ("cuont=3", "cuont"),
    ],
)
def test_wrong_setting_is_answered_at_once(tmp_path: Path, word: str, message: str) -> None:
    start = seconds_of_children()

    done = evaluate(tmp_path, f"output_dir={tmp_path}/evaluation", word)

    assert done.returncode != 0
    assert message in done.stderr
    assert seconds_of_children() - start < 10
