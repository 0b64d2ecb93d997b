"""The learning rate rises linearly and falls as a cosine to its final fraction."""

import pytest

from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.runs.schedule import learning_rate_at

CONFIG = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_learning_rate_fraction=0.1)


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
def test_learning_rate(step: int, expected: float) -> None:
    assert learning_rate_at(step, 15, CONFIG) == pytest.approx(expected)


def test_the_rate_stays_at_its_end_in_a_run_that_is_all_warm_up_and_after_the_last_step() -> None:
    assert learning_rate_at(5, 5, CONFIG) == pytest.approx(1.0)  # decay has one step, its first
    assert learning_rate_at(5, 4, CONFIG) == pytest.approx(1.0)
    assert learning_rate_at(21, 15, CONFIG) == pytest.approx(0.1)
