"""A log line is the mean over the steps since the last one that were not skipped."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.plan_peers import read_gpu
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.model.loss import num_losses
from ernie_vilg.runs.meter import Meter
from ernie_vilg.training.metrics import PretrainFigures, loss_metrics
from tests.training.runs import MODEL, tiny_run

NOT_SKIPPED, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


class OneRank:
    """Stands for an engine on one CPU rank."""

    groups = SimpleNamespace(world_size=1, device=torch.device("cpu"))

    def mean_losses(self, losses: Tensor) -> Tensor:
        return losses.clone()

    def gradient_norm(self) -> float:
        return 0.5


def vector(total: float, rows: list[float], by_slot: list[float], share: list[float]) -> Tensor:
    return torch.tensor([total, total / 2, total / 4, 0.0, *rows, *by_slot, *share])


def read(meter: Meter, config: PretrainConfig) -> dict[str, Any]:
    engine: Any = OneRank()
    return meter.read(engine, PretrainFigures(config))


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return tiny_run(tmp_path, steps=2)  # a grid of 2 x 2 and 3 text slots


@pytest.fixture
def meter() -> Meter:
    return Meter(losses=torch.zeros(num_losses(MODEL)))


def test_losses_are_means_over_steps_and_slots_over_their_targets(
    meter: Meter, config: PretrainConfig
) -> None:
    meter.add(vector(4.0, [1.0, 2.0], [3.0, 0.5, 0.0], [1.0, 0.25, 0.0]), NOT_SKIPPED, 8)
    meter.add(vector(2.0, [3.0, 4.0], [1.0, 1.0, 0.0], [1.0, 0.50, 0.0]), NOT_SKIPPED, 8)

    metrics = read(meter, config)

    assert metrics["loss"] == 3.0
    assert metrics["loss_text_to_image"] == 1.5
    assert metrics["loss_image_to_text"] == 0.75
    assert metrics["loss_by_image_row"] == [2.0, 3.0]
    # 4 nats over 2 shares, 1.5 over 0.75; nobody has a third piece.
    assert metrics["loss_by_text_position"] == [2.0, 2.0, None]
    assert "loss_reconstruction" not in metrics


def test_a_skipped_step_is_counted_and_its_nan_is_excluded(
    meter: Meter, config: PretrainConfig
) -> None:
    good = vector(4.0, [1.0, 2.0], [3.0, 0.5, 0.0], [1.0, 0.25, 0.0])
    meter.add(good, NOT_SKIPPED, 8)
    meter.add(torch.full_like(good, math.nan), SKIPPED, 8)
    meter.add(good, NOT_SKIPPED, 8)

    metrics = read(meter, config)

    assert metrics["loss"] == 4.0
    assert metrics["loss_by_image_row"] == [1.0, 2.0]
    assert metrics["skipped_steps"] == 1


def test_without_an_unskipped_step_there_is_no_loss(meter: Meter, config: PretrainConfig) -> None:
    meter.add(torch.zeros(num_losses(MODEL)), SKIPPED, 8)

    metrics = read(meter, config)

    assert math.isnan(metrics["loss"])
    assert metrics["loss_by_text_position"] == [None, None, None]


def test_reading_resets_the_sums(meter: Meter, config: PretrainConfig) -> None:
    meter.add(torch.ones(num_losses(MODEL)), SKIPPED, 8)
    read(meter, config)
    meter.add(vector(2.0, [0.0, 0.0], [0.0] * 3, [0.0] * 3), NOT_SKIPPED, 8)

    metrics = read(meter, config)

    assert (metrics["loss"], metrics["skipped_steps"]) == (2.0, 0.0)


def test_rates_and_mfu_follow_from_the_time_of_a_step(
    meter: Meter, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter.add(torch.zeros(num_losses(MODEL)), NOT_SKIPPED, 8)
    monkeypatch.setattr("time.monotonic", lambda: meter.since + 2.0)
    gpu = replace(read_gpu("h100-80gb"), peak_flops=1e9)

    metrics = read(meter, replace(config, gpu=gpu))

    assert metrics["seconds_per_step"] == 2.0
    assert metrics["pairs_per_second"] == 8 / 2
    assert metrics["tokens_per_second"] == 4 * 2 * (3 + 4)  # both directions, all slots
    assert metrics["mfu"] == metrics["flops_per_second_per_device"] / 1e9
    assert 1 << 20 < metrics["memory_bytes"] <= metrics["peak_memory_bytes"]


def test_the_first_step_enters_no_speed_unless_it_is_alone(
    meter: Meter, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=meter.since)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    zeros = torch.zeros(num_losses(MODEL))

    clock.now += 40.0
    meter.add(zeros, NOT_SKIPPED, 8)
    meter.end_first_step()
    alone = read(meter, config)
    for num_pairs in (8, 16):
        clock.now += 3.0
        meter.add(zeros, NOT_SKIPPED, num_pairs)
    later = read(meter, config)

    assert meter.first_step_seconds == 40.0
    assert alone["seconds_per_step"] == 40.0
    assert alone["pairs_per_second"] == 8 / 40
    assert later["seconds_per_step"] == 3.0
    assert later["pairs_per_second"] == 24 / 6


def test_a_line_with_the_first_step_has_its_losses_and_not_its_time(
    meter: Meter, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=meter.since)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)

    for seconds, loss in ((40.0, 4.0), (2.0, 2.0), (4.0, 0.0)):
        clock.now += seconds
        meter.add(vector(loss, [0.0, 0.0], [0.0] * 3, [0.0] * 3), NOT_SKIPPED, 8)
        if meter.first_step_seconds is None:
            meter.end_first_step()
    metrics = read(meter, config)

    assert metrics["loss"] == 2.0
    assert metrics["seconds_per_step"] == 3.0
    assert metrics["pairs_per_second"] == 8 / 3.0


def test_the_reconstruction_loss_is_logged_if_the_model_has_one(config: PretrainConfig) -> None:
    model = replace(MODEL, reconstructor=replace(MODEL.reconstructor, kind="end_to_end"))
    sums = torch.zeros(num_losses(model))
    sums[3] = 6.0

    assert loss_metrics(sums, 2, model)["loss_reconstruction"] == 3.0
