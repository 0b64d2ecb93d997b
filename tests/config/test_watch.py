"""Refused settings of the watchdog."""

import pytest

from ernie_vilg.config.watch import WatchConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_timeout_seconds": 0}, "watch.step_timeout_seconds=0: must be above 0"),
        ({"phase_timeout_seconds": -1}, "watch.phase_timeout_seconds=-1: must be above 0"),
        ({"heartbeat_seconds": 0}, "watch.heartbeat_seconds=0: must be above 0"),
        ({"straggler_factor": 1.0}, "watch.straggler_factor=1.0: must be above 1"),
        ({"straggler_windows": 0}, "watch.straggler_windows=0: must be at least 1"),
    ],
)
def test_each_setting_is_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WatchConfig(**settings)  # type: ignore[arg-type]
