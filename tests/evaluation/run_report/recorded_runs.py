"""Run folders as the trainers leave them, without training."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ernie_vilg.checkpoint.folder import write_checkpoint_manifest
from ernie_vilg.config.checkpoint import CheckpointConfig
from ernie_vilg.config.data import PretrainDataConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.config.pretrain import ParallelismConfig, PretrainConfig, TrainingConfig
from ernie_vilg.config.tracking import TrackingConfig
from ernie_vilg.evaluation.grid import before_and_after
from ernie_vilg.runs.recorded_settings import write_run
from ernie_vilg.runs.run_folder import RunFolder

MODEL = ModelConfig(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    text_vocab_size=64,
    text_length=3,
    codebook_size=64,
    image_grid_size=2,
)
TEXT_HASH, IMAGE_HASH, DATA_HASH = "7" * 64, "a" * 64, "d" * 64


def settings(folder: Path, **changes: Any) -> PretrainConfig:
    """Return the settings of a small run."""
    config = PretrainConfig(
        run_dir=str(folder),
        model=MODEL,
        data=PretrainDataConfig(token_shards="shards", text_tokenizer="t", image_tokenizer="i"),
        parallelism=ParallelismConfig(micro_batch_size=2, global_batch_size=8),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        training=TrainingConfig(steps=100, log_every=10),
        checkpoint=CheckpointConfig(every=50),
        tracking=TrackingConfig(experiment="tiny"),
    )
    return replace(config, **changes)


def log_line(step: int, loss: float) -> dict[str, Any]:
    """Return a log line of a pretraining run."""
    return {
        "step": step,
        "loss": 3 * loss,
        "loss_text_to_image": loss,
        "loss_image_to_text": loss / 2,
        "loss_by_image_row": [loss, loss / 4],
        "loss_by_text_position": [loss, loss / 10, None],
        "gradient_norm": 1.0,
        "learning_rate": 1e-3,
        "pairs_per_second": 40.0,
        "line_seconds": 30.0,
        "unix_seconds": 1_795_945_253.0 + step,
        "data_position": 8.0 * step,
        "epoch": step / 100,
    }


def validation_line(step: int, loss: float) -> dict[str, Any]:
    """Return the line of a validation."""
    return {
        "step": step,
        "validation/held_out/loss": 3 * loss,
        "validation/held_out/loss_text_to_image": loss,
        "validation/held_out/loss_image_to_text": loss / 2,
    }


LINES = (
    {"step": 0},
    *(log_line(step, 50 / step) for step in range(10, 101, 10)),
    validation_line(50, 1.25),
    validation_line(100, 0.75),
)


def write_run_folder(
    folder: Path, lines: Iterable[Mapping[str, Any]] = LINES, **changes: Any
) -> Path:
    """Write a run folder with settings and metrics."""
    folder.mkdir(parents=True)
    write_run(settings(folder, **changes))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    RunFolder(folder).metrics.write_text(text)
    return folder


def write_checkpoint(folder: Path, step: int = 100, **identity: Any) -> None:
    """Write the manifest of a checkpoint, without its files."""
    checkpoint = RunFolder(folder).checkpoint(step)
    checkpoint.mkdir(parents=True)
    write_checkpoint_manifest(
        checkpoint,
        step=step,
        identity={
            "lineage": {"text_tokenizer": TEXT_HASH, "image_tokenizer": IMAGE_HASH},
            "order": {"data_sets": {"main": DATA_HASH}},
            "precision": "bfloat16",
            **identity,
        },
        files=[],
        about={"layout": {"data_parallel_size": 4}, "versions": {"ernie-vilg": "0.1.0"}},
    )


def write_samples(folder: Path, step: int, colour: str, *, num_pairs: int = 3) -> None:
    """Write the samples of a step: white pictures above coloured ones."""
    grid = before_and_after(
        [Image.new("RGB", (12, 12), "white")] * num_pairs,
        [Image.new("RGB", (12, 12), colour)] * num_pairs,
        columns=8,
    )
    path = RunFolder(folder).samples(step)
    path.parent.mkdir(exist_ok=True)
    grid.save(path)
    lines = [
        {"caption": f"true {index}", "written": f"{colour} {index}"} for index in range(num_pairs)
    ]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
