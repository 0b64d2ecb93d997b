"""A lack of the GPU's memory costs an observation, never the run."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.support.models import read_model
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.pretrain import HealthConfig, PretrainConfig, SamplesConfig
from ernie_vilg.observers import model_of_run
from ernie_vilg.observers.health import measure_health
from ernie_vilg.observers.model_of_run import Need, NoRoomError, need_of, within_memory
from ernie_vilg.observers.samples import draw_samples
from ernie_vilg.runs.observation import Observation
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import save_image_tokenizer
from tests.model.tiny import DECODER
from tests.training.runs import tiny_run

OBSERVATIONS = {"samples": draw_samples, "health": measure_health}


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    run = tiny_run(tmp_path, steps=2)
    save_image_tokenizer(VQGAN(DECODER), tmp_path / "tokenizer")
    return replace(
        run,
        data=replace(run.data, image_tokenizer=str(tmp_path / "tokenizer")),
        samples=SamplesConfig(every=1, pairs=str(tmp_path)),
        health=HealthConfig(every=1),
    )


def gpu_with(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let observations see a GPU with some free bytes; whoever allocates there fails."""
    monkeypatch.setattr(model_of_run, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(model_of_run, "choose_precision", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(model_of_run, "free_bytes", lambda device: free)


@pytest.mark.parametrize("name", ["samples", "health"])
def test_an_observation_without_room_is_skipped_counted_and_told(
    config: PretrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    gpu_with(monkeypatch, free=1000)

    with caplog.at_level(logging.WARNING):
        seen = OBSERVATIONS[name](config, 2, {})

    assert seen == Observation(metrics={f"{name}/skipped": 1.0}, pictures={})
    assert f"{name} after step 2 skipped: it needs" in caplog.text
    assert "0.0 GB are free" in caplog.text


def test_memory_that_runs_out_all_the_same_ends_the_observation_only() -> None:
    @within_memory("samples")
    def observe(*_: Any) -> Observation:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert observe(None, 3) == Observation(metrics={"samples/skipped": 1.0}, pictures={})


def test_other_errors_of_an_observation_are_raised() -> None:
    @within_memory("samples")
    def observe(*_: Any) -> Observation:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        observe(None, 3)


@pytest.mark.parametrize(("free", "pairs"), [(120, 1), (199, 4), (200, 5), (1000, 8)])
def test_as_many_pairs_at_once_as_fit(free: int, pairs: int) -> None:
    assert Need(fixed=100, per_pair=20).pairs_that_fit(free, most=8) == pairs


def test_less_memory_than_one_pair_needs_is_no_room() -> None:
    with pytest.raises(NoRoomError):
        Need(fixed=100, per_pair=20).pairs_that_fit(119, most=8)


def test_the_10b_draws_beside_its_training_on_80_gb_and_compares_no_gradients() -> None:
    """Weights are 20 GB, and so is each gradient; a pair's keys and values are 0.86 GB."""
    model, tokenizer = read_model("ernie_vilg_10b"), VQGAN(ImageTokenizerConfig(image_size=256))

    drawing = need_of(model, tokenizer, torch.bfloat16)
    comparing = need_of(model, tokenizer, torch.bfloat16, gradients_of=16)

    assert 20e9 < drawing.fixed < 35e9
    assert 0.86e9 < drawing.per_pair < 2.5e9
    assert comparing.fixed > 100e9
