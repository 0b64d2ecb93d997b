"""Goodput is that of the hand-computed example of Young and Daly."""

import pytest

from ernie_vilg.planning.goodput import goodput
from ernie_vilg.planning.work import work_of_model
from launch.composition import compose_program

_WORDS = ["experiment=ernie_vilg_10b", "num_gpus=1000", "gpu=h100-80gb"]


def test_stops_cost_half_an_interval_and_the_restart() -> None:
    config = compose_program("plan", [*_WORDS, "checkpoint.every=432", "restart_minutes=0"])

    kept = goodput(config, work_of_model(config.model), 10.0, 1000)

    # A stop a day; 4,320 s between saves: 2,160 s of 86,400 are lost, and a save under way.
    lost = 2160 + kept.write_seconds
    stalled = kept.stall_seconds / 4320
    assert kept.hours_between_stops == pytest.approx(24)
    assert kept.share == pytest.approx(1 - lost / 86_400 - stalled, abs=1e-5)


def test_hardware_that_never_stops_loses_its_stalls_alone() -> None:
    config = compose_program("plan", [*_WORDS, "failures_per_thousand_gpu_days=0"])

    assert goodput(config, work_of_model(config.model), 10.0, 1000).share > 0.9999
