"""Refused settings of checkpoints."""

import pytest

from ernie_vilg.config.checkpoint import CheckpointConfig


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("every", 0, r"checkpoint\.every=0: must be at least 1"),
        ("keep", 0, r"checkpoint\.keep=0: must be at least 1"),
        ("keep_every", -1, r"checkpoint\.keep_every=-1: must be at least 0"),
        ("max_failed_saves", -1, r"checkpoint\.max_failed_saves=-1: must be at least 0"),
    ],
)
def test_a_setting_that_keeps_nothing_is_refused(name: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckpointConfig(**{"every": 1, name: value})
