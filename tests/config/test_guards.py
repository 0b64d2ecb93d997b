"""Refused settings of the guards."""

from typing import Any

import pytest

from ernie_vilg.config.guards import GuardsConfig


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        pytest.param(
            {"spike_deviations": -1.0}, r"guards\.spike_deviations=-1\.0", id="deviations"
        ),
        pytest.param(
            {"spike_deviations": float("nan")}, r"guards\.spike_deviations=nan", id="no number"
        ),
        pytest.param({"spike_window": 1}, r"guards\.spike_window=1: .*at least 2", id="window"),
        pytest.param({"max_skips": -1}, r"guards\.max_skips=-1", id="skips"),
        pytest.param({"max_rollbacks": -1}, r"guards\.max_rollbacks=-1", id="rollbacks"),
        pytest.param({"replica_check_every": -5}, r"guards\.replica_check_every=-5", id="check"),
    ],
)
def test_wrong_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuardsConfig(**setting)


def test_every_guard_can_be_turned_down() -> None:
    GuardsConfig(spike_deviations=0, max_skips=0, max_rollbacks=0, replica_check_every=0)
