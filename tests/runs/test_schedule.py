"""Each schedule's learning rates are those of its formula."""

import math
from dataclasses import replace

import pytest

from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.runs.schedule import learning_rate_at

CONFIG = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_learning_rate_fraction=0.1)
STABLE = OptimizerConfig(
    learning_rate=0.7, warmup_steps=3, schedule="wsd", decay_steps=4, decay_shape="linear"
)
"""Warm-up in steps 1 to 3 and decay in the last four."""


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param(1, 0.25, id="first step of warm-up"),
        pytest.param(4, 1.0, id="last step of warm-up"),
        pytest.param(5, 1.0, id="start of decay"),
        pytest.param(10, 0.55, id="middle of decay: half of 0.9 above 0.1"),
        pytest.param(15, 0.1, id="last step"),
    ],
)
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_cosine_and_linear_fall_from_the_warm_up_to_the_last_step(
    schedule: str, step: int, expected: float
) -> None:
    config = replace(CONFIG, schedule=schedule)

    assert learning_rate_at(step, 15, config) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        pytest.param("cosine", 0.1 + 0.9 * (1 + math.sqrt(3) / 2) / 2, id="cosine of 30 degrees"),
        pytest.param("linear", 0.1 + 0.9 * 5 / 6, id="linear"),
    ],
)
def test_a_sixth_of_the_decay(schedule: str, expected: float) -> None:
    config = replace(CONFIG, schedule=schedule)

    assert learning_rate_at(7, 17, config) == pytest.approx(expected)


def test_the_rate_stays_at_its_end_in_a_run_that_is_all_warm_up_and_after_the_last_step() -> None:
    assert learning_rate_at(5, 5, CONFIG) == pytest.approx(1.0)  # decay has one step, its first
    assert learning_rate_at(5, 4, CONFIG) == pytest.approx(1.0)
    assert learning_rate_at(21, 15, CONFIG) == pytest.approx(0.1)


def test_a_constant_schedule_has_a_warm_up_and_no_end() -> None:
    config = OptimizerConfig(learning_rate=0.7, warmup_steps=2, schedule="constant")

    rates = [learning_rate_at(step, 5, config) for step in (1, 2, 3, 5, 6)]

    assert rates == [0.35, 0.7, 0.7, 0.7, 0.7]


@pytest.mark.parametrize(
    ("shape", "heights"),
    [
        pytest.param("linear", [3 / 4, 2 / 4, 1 / 4, 0.0], id="linear"),
        pytest.param("1-sqrt", [1 - 1 / 2, 1 - 2**-0.5, 1 - 3**0.5 / 2, 0.0], id="1 - sqrt(k / 4)"),
    ],
)
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_wsd_warms_up_stays_and_decays_in_its_last_steps(
    shape: str, heights: list[float], final: float
) -> None:
    config = replace(STABLE, decay_shape=shape, final_learning_rate_fraction=final)

    rates = [learning_rate_at(step, 12, config) for step in range(1, 14)]

    assert rates[:3] == pytest.approx([0.7 / 3, 1.4 / 3, 0.7])
    assert rates[3:8] == [0.7] * 5  # to step 8, exactly
    assert rates[8:12] == pytest.approx([0.7 * (final + (1 - final) * each) for each in heights])
    assert rates[12] == pytest.approx(0.7 * final)  # after the last step


@pytest.mark.parametrize("branch", [3, 4, 20])
def test_until_a_branch_wsd_is_the_constant_schedule_bit_for_bit(branch: int) -> None:
    trunk = OptimizerConfig(learning_rate=0.7, warmup_steps=3, schedule="constant")

    for step in range(1, branch + 1):
        assert learning_rate_at(step, branch + 4, STABLE) == learning_rate_at(step, 99, trunk)
    assert learning_rate_at(branch + 1, branch + 4, STABLE) == pytest.approx(
        0.7 * (0.1 + 0.9 / 4 * 3)
    )
