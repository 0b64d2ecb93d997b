"""Refused settings of stopping."""

import pytest

from ernie_vilg.config.stopping import StoppingConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_hours": 0.0}, "stopping.max_hours=0.0: must be above 0, or null"),
        ({"grace_seconds": 0.0}, "stopping.grace_seconds=0.0: must be above 0"),
    ],
)
def test_no_time_at_all_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StoppingConfig(**settings)  # type: ignore[arg-type]
