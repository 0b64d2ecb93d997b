"""Goodput equals hand-computed examples after Young and Daly."""

import pytest

from ernie_vilg.planning.goodput import goodput
from ernie_vilg.planning.workload import Workload, workload_of_model
from launch.support.composition import compose_program

_WORDS = ["experiment=ernie_vilg_10b", "num_gpus=1000", "gpu=h100-80gb"]


def test_stops_cost_half_an_interval_and_the_restart() -> None:
    config = compose_program("plan", [*_WORDS, "checkpoint.every=432", "restart_minutes=0"])

    kept = goodput(config, workload_of_model(config.model), 10.0, 1000)

    # A stop a day; 4,320 s between saves: 2,160 s of 86,400 are lost, and a save in progress.
    lost = 2160 + kept.write_seconds
    stalled = kept.stall_seconds / 4320
    assert kept.hours_between_stops == pytest.approx(24)
    assert kept.share == pytest.approx(1 - lost / 86_400 - stalled, abs=1e-5)


def test_hardware_that_never_stops_loses_its_stalls_alone() -> None:
    config = compose_program("plan", [*_WORDS, "failures_per_thousand_gpu_days=0"])

    assert goodput(config, workload_of_model(config.model), 10.0, 1000).share > 0.9999


_WORKLOAD = Workload(
    hidden_size=1,
    num_layers=10,
    tokens=1,
    block_flops=1.0,
    attention_flops=1.0,
    head_flops=1.0,
    block_parameters=90_000_000,
    outer_parameters=100_000_000,
)
"""A checkpoint of 14 GB."""
# 16 GPUs on 2 machines that write 1e9 bytes a second each: 7 s for a checkpoint. 625 stops per
# thousand GPU days are one per 8,640 s.
_TWO_MACHINES = [
    *_WORDS,
    "num_gpus=16",
    "gpu.storage_bandwidth=1e9",
    "gpu.host_bandwidth=1e8",
    "failures_per_thousand_gpu_days=625",
    "restart_minutes=10",
    "checkpoint.every=100",
    "training.steps=1000",
]


def test_a_blocking_save_costs_what_was_computed_by_hand() -> None:
    config = compose_program("plan", [*_TWO_MACHINES, "checkpoint.asynchronous=false"])

    kept = goodput(config, _WORKLOAD, 1.0, 16)

    assert kept.write_seconds == pytest.approx(7)
    assert kept.stall_seconds == pytest.approx(7)
    assert kept.hours_between_stops == pytest.approx(2.4)
    # 7 s of every 107; per stop half an interval, 50 s, and the restart's 600 s.
    assert kept.share == pytest.approx(1 - 7 / 107 - 650 / 8640)
    assert kept.best_interval_steps == 348  # sqrt(2 * 7 * 8640) = 347.8 s


def test_a_background_save_stalls_for_the_copy_and_a_stop_loses_it() -> None:
    config = compose_program("plan", [*_TWO_MACHINES, "checkpoint.asynchronous=true"])

    kept = goodput(config, _WORKLOAD, 1.0, 16)

    assert kept.write_seconds == pytest.approx(7)
    assert kept.stall_seconds == pytest.approx(8.75)  # 14e9 / (16 * 1e8)
    assert kept.share == pytest.approx(1 - 8.75 / 108.75 - 657 / 8640)
    assert kept.best_interval_steps == 389  # sqrt(2 * 8.75 * 8640) = 388.8 s
