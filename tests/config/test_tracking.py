"""Refused settings of tracking."""

import math

import pytest

from ernie_vilg.config.tracking import TrackingConfig


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="wandb_mode=of: choose auto, online, offline or disabled"):
        TrackingConfig(wandb_mode="of")


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_the_end_is_bounded(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"tracking\.finish_seconds"):
        TrackingConfig(finish_seconds=seconds)
