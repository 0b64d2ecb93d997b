"""Settings of a schedule that another one has no use for are refused, and null is filled in."""

from typing import Any

import pytest

from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.errors import InputError


def settings(**changes: Any) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": 1e-3, "warmup_steps": 5, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"schedule": "constant", "final_learning_rate_fraction": 0.1},
            r"optimizer\.final_learning_rate_fraction=0.1 with optimizer\.schedule=constant.*"
            r"=null, or optimizer\.schedule=cosine or linear or wsd",
            id="an end of constant",
        ),
        pytest.param(
            {"schedule": "constant", "final_learning_rate_fraction": 0.0},
            "final_learning_rate_fraction=0.0 with optimizer.schedule=constant",
            id="an end of constant, 0",
        ),
        *(
            pytest.param(
                {"schedule": schedule, **change},
                rf"optimizer\.{name}={value} with optimizer\.schedule={schedule}, which has no use",
                id=f"{name} of {schedule}",
            )
            for schedule in ("cosine", "linear", "constant")
            for change in ({"decay_steps": 3}, {"decay_shape": "linear"})
            for name, value in change.items()
        ),
        pytest.param(
            {"schedule": "wsd"}, r"wsd with optimizer\.decay_steps=null: set", id="no decay"
        ),
        pytest.param({"schedule": "step"}, "choose cosine, linear, constant or wsd", id="unknown"),
        pytest.param(
            {"schedule": "wsd", "decay_steps": 3, "decay_shape": "cosine"},
            r"decay_shape=cosine: choose linear or 1-sqrt",
            id="unknown shape",
        ),
        pytest.param(
            {"schedule": "wsd", "decay_steps": 0}, "decay_steps=0: must be at least 1", id="0 steps"
        ),
    ],
)
def test_a_wrong_schedule_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**changes)


def test_null_is_filled_in_with_what_older_runs_recorded() -> None:
    cosine, stable = settings(), settings(schedule="wsd", decay_steps=3)

    assert (cosine.schedule, cosine.final_learning_rate_fraction) == ("cosine", 0.1)
    assert (cosine.decay_steps, cosine.decay_shape) == (None, None)
    assert (stable.final_learning_rate_fraction, stable.decay_shape) == (0.1, "1-sqrt")
    assert settings(schedule="constant").final_learning_rate_fraction is None


def test_warm_up_and_decay_must_fit_into_the_run() -> None:
    stable = settings(schedule="wsd", decay_steps=7)

    stable.check_length(12)
    with pytest.raises(
        InputError, match=r"decay_steps=7 and optimizer\.warmup_steps=5 with training\.steps=11"
    ):
        stable.check_length(11)
    settings().check_length(3)  # a cosine run may be all warm-up
