"""Held-out pictures are measured while a run trains; W&B and metrics.jsonl get the figures."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.config.train_image_tokenizer import (
    ReconstructionsConfig,
    TrainImageTokenizerConfig,
)
from ernie_vilg.data.batches.image_batches import ImageBatches
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.tokenizer_training.pictures import image_sequence, training_source
from ernie_vilg.vqgan.pixels import from_bytes, to_bytes
from ernie_vilg.vqgan.weights import load_image_tokenizer, read_card
from tests.tokenizer_training.tokenizer_run import ALONE, SIZE, run, tiny_config, write_shards
from tests.tracking.wandb_file import logged_history


@pytest.fixture
def config(tmp_path: Path) -> TrainImageTokenizerConfig:
    """Return a run that is evaluated on other shards every two steps."""
    write_shards(tmp_path / "shards")
    write_shards(tmp_path / "held_out", seed=1)
    config = tiny_config(tmp_path / "shards", tmp_path / "run", steps=5)
    places = ReconstructionsConfig(shards=str(tmp_path / "held_out"), every=2, pictures=20)
    return replace(config, reconstructions=places)


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" not in line]


def test_held_out_pictures_are_measured_at_the_interval_and_after_the_last_step(
    config: TrainImageTokenizerConfig,
) -> None:
    run_dir = Path(config.run_dir)

    run(ALONE, config)
    run(ALONE, config)  # all is done: nothing is measured again

    lines = evaluations(run_dir)
    pictures = [line for line in lines if "pictures" in line]
    figures = [line for line in lines if "held_out_psnr" in line]
    assert [line["step"] for line in figures] == [2, 4, 5]
    assert set(figures[0]) >= {
        "held_out_ssim", "held_out_codebook_usage", "held_out_perplexity", "held_out_pictures",
    }  # fmt: skip
    assert [line["pictures"]["reconstructions"]["file"] for line in pictures] == [
        f"reconstructions/step_{step:08d}.png" for step in (2, 4, 5)
    ]
    assert "20 held-out pictures" in pictures[0]["pictures"]["reconstructions"]["caption"]
    with Image.open(run_dir / "reconstructions" / "step_00000004.png") as grid:
        assert grid.size == (16 * SIZE, 2 * SIZE)
    written = json.loads((run_dir / "metrics.json").read_text())
    assert (written["step"], written["held_out"]) == (5, True)
    assert written["psnr"] == figures[-1]["held_out_psnr"]
    assert sum(written["code_counts"]) == 20 * 4  # 20 pictures of 2 x 2 codes
    assert read_card(run_dir / "weights").lineage["evaluated_on"] == "20 pictures, held out"


def test_the_figures_are_those_of_the_exported_weights(config: TrainImageTokenizerConfig) -> None:
    run(ALONE, config)

    tokenizer, _ = load_image_tokenizer(Path(config.run_dir) / "weights")
    assert config.reconstructions.shards is not None
    manifest = read_manifest(Path(config.reconstructions.shards), "image")
    source = training_source(replace(config, shards=config.reconstructions.shards), manifest)
    sequence = image_sequence(config, source, Quarantine())
    replica = ReplicaSlice(batch_sizes=BatchSizes(full=1), data_rank=0, data_size=1)
    with closing(ImageBatches(sequence, replica)) as batches:
        originals = batches.for_evaluation(0, 20)
    decoded = to_bytes(tokenizer.decode(tokenizer.encode(from_bytes(originals))))
    error = ((decoded.double() - originals.double()) / 255).square().mean()
    written = json.loads((Path(config.run_dir) / "metrics.json").read_text())
    assert written["psnr"] == pytest.approx(float(-10 * torch.log10(error)), abs=1e-3)


def test_pictures_that_are_trained_on_are_called_so(
    config: TrainImageTokenizerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    reconstructions = replace(config.reconstructions, shards=None, every=0)
    run(ALONE, replace(config, reconstructions=reconstructions))

    (figures,) = [line for line in evaluations(Path(config.run_dir)) if "pictures" not in line]
    assert "trained_on_psnr" in figures
    assert any("evaluated on pictures that it is trained on" in line for line in caplog.messages)


def test_wandb_gets_the_losses_the_figures_and_the_grid(
    config: TrainImageTokenizerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    tracking = TrackingConfig(wandb_mode="offline", finish_seconds=60.0)

    run(ALONE, replace(config, tracking=tracking))

    (file,) = Path(config.run_dir).glob("wandb/offline-run-*/run-*.wandb")
    history = {entry["_step"]: entry for entry in logged_history(file)}
    assert sorted(history) == [1, 2, 3, 4, 5]
    assert history[3]["images_per_second"] > 0
    assert history[4]["held_out_psnr"] > 0
    assert "20 held-out pictures" in history[4]["reconstructions"]["caption"]
