"""A kill at any moment neither stops the next start nor changes its output."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from data_pipelines.building.build import build_image_shards
from data_pipelines.encoding.encode import encode_image_shards
from data_pipelines.outputs import output_folder
from ernie_vilg.checkpoint import export
from ernie_vilg.checkpoint.folder import CHECKPOINT_PARTS, write_checkpoint_manifest
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.shards import BuildShardsConfig, EncodeShardsConfig
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import committed_folder
from ernie_vilg.text_tokenizer import (
    DESCRIPTION_FILE,
    TextTokenizer,
    train_text_tokenizer,
    write_text_tokenizer,
)
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import load_image_tokenizer, save_image_tokenizer
from tests.checkpoint.checkpoint_runs import FakeEngine, checkpoints_of
from tests.distributed import run_distributed
from tests.storage.kills import Action, kill_everywhere
from tests.training.runs import MODEL

CAPTIONS = ["a red circle", "一个红色的圆", "two blue squares"]
VQGAN_CONFIG = ImageTokenizerConfig(
    image_size=8,
    codebook_size=16,
    embedding_size=4,
    base_channels=8,
    channel_multipliers=(1, 1),
    num_residual_blocks=1,
    normalization="none",
)


# --- A run's saves, retention and latest.json.


def nothing(_: Path) -> None:
    pass


def save_three(folder: Path, **settings: Any) -> None:
    """Continue a run until its step 30."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    engine: Any = FakeEngine()
    checkpoints = checkpoints_of(folder / "run", keep=2, **settings)
    for step in range(checkpoints.restore(engine) + 10, 31, 10):
        engine.state = step
        checkpoints.save(engine, step)
    checkpoints.finish()


def begun_under_another_layout(folder: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    checkpoints_of(folder / "run", layout={"zero_stage": 2}).restore(FakeEngine())  # type: ignore[arg-type]


# --- Image shards.


def raw_pairs(folder: Path) -> None:
    (folder / "source").mkdir()
    noise = np.random.default_rng(0)
    lines = []
    for index, caption in enumerate(CAPTIONS):
        pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "source" / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "caption": caption}))
    (folder / "source" / "captions.jsonl").write_text("\n".join(lines))
    build(folder, image_size=4)


def build(folder: Path, image_size: int = 8) -> None:
    build_image_shards(
        BuildShardsConfig(
            source=str(folder / "source"),
            output_dir=str(folder / "images"),
            image_size=image_size,
            samples_per_shard=2,
            overwrite=True,
        )
    )


# --- Tokenizers.


def text_model(captions: list[str]) -> bytes:
    settings = TrainTextTokenizerConfig(shards="", output_dir="unused", vocab_size=300)
    return train_text_tokenizer(captions * 9, settings)


def save_tokenizers(folder: Path, captions: list[str] = CAPTIONS, seed: int = 1) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    save_image_tokenizer(VQGAN(VQGAN_CONFIG), folder / "vqgan")
    with output_folder(folder / "text", overwrite=True, marker=DESCRIPTION_FILE) as written:
        write_text_tokenizer(written, text_model(captions), {})


def older_tokenizers(folder: Path) -> None:
    save_tokenizers(folder, CAPTIONS[:1], seed=0)


def test_tokenizers_can_be_read_by_everybody(tmp_path: Path) -> None:
    before = os.umask(0o022)
    save_tokenizers(tmp_path)
    os.umask(before)

    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*/*")} == {0o644}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o755}


# --- Token shards.


def image_shards_and_tokenizers(folder: Path) -> None:
    raw_pairs(folder)
    build(folder)
    save_tokenizers(folder)
    encode(folder, keep_pixels=True)


def encode(folder: Path, *, keep_pixels: bool = False) -> None:
    torch.set_num_threads(1)
    encode_image_shards(
        EncodeShardsConfig(
            shards=str(folder / "images"),
            text_tokenizer_dir=str(folder / "text"),
            image_tokenizer_dir=str(folder / "vqgan"),
            output_dir=str(folder / "tokens"),
            batch_size=2,
            keep_pixels=keep_pixels,
            overwrite=True,
        )
    )


# --- Exported weights.


def trained_run(folder: Path) -> None:
    """Make a run with invented weights, and an older export."""
    save_tokenizers(folder)
    lineage = {
        "text_tokenizer": TextTokenizer.load(folder / "text").sha256,
        "image_tokenizer": load_image_tokenizer(folder / "vqgan")[1],
    }
    identity = {"model": asdict(MODEL), "lineage": lineage}
    with committed_folder(RunFolder(folder / "run").checkpoint(1)) as written:
        about = {part: {} for part in CHECKPOINT_PARTS}
        write_checkpoint_manifest(written, step=1, identity=identity, files=[], about=about)
    write_export(folder, value=0.0)


def write_export(folder: Path, value: float = 1.0) -> None:
    paths = {"text_tokenizer": str(folder / "text"), "image_tokenizer": str(folder / "vqgan")}
    export.read_run = lambda _: paths  # in this fork only
    export.whole_weights = lambda *_, average: (MODEL, {"weights": torch.full((8,), value)})
    export.export(folder / "run", folder / "export", overwrite=True, average=False)


WRITERS = {
    "a run's saves": (nothing, save_three, 6),
    "a save of step 0 again": (begun_under_another_layout, save_three, 12),
    "image shards": (raw_pairs, build, 50),
    "tokenizers": (older_tokenizers, save_tokenizers, 4),
    "token shards": (image_shards_and_tokenizers, encode, 8),
    "an export": (trained_run, write_export, 5),
}


def killed_everywhere(folder: Path, prepare: Action, write: Action, every: int) -> None:
    [(count, differing)] = run_distributed(kill_everywhere, 1, folder, prepare, write, every)

    assert count >= 20
    assert differing == []


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_writer_killed_at_an_operation_starts_again_to_the_same_bytes(
    tmp_path: Path, name: str
) -> None:
    killed_everywhere(tmp_path, *WRITERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WRITERS))
def test_a_writer_killed_at_every_operation_starts_again_to_the_same_bytes(
    tmp_path: Path, name: str
) -> None:
    prepare, write, _ = WRITERS[name]
    killed_everywhere(tmp_path, prepare, write, 1)
