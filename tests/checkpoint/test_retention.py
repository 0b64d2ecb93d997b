"""Retention keeps the newest checkpoints and the multiples of a step."""

import pytest

from ernie_vilg.checkpoint.retention import superseded_steps


@pytest.mark.parametrize(
    ("steps", "keep", "keep_every", "gone"),
    [
        pytest.param([10], 2, 0, [], id="no more than are kept"),
        pytest.param([0, 10, 20], 2, 0, [0], id="the oldest goes"),
        pytest.param([0, 10, 20], 1, 0, [10, 0], id="the new one alone stays"),
        pytest.param([20], 1, 0, [], id="the new one is never superseded"),
        pytest.param([0, 5, 10, 15, 20], 2, 10, [5, 0], id="multiples stay, fresh weights do not"),
        pytest.param([5, 10, 20, 30], 2, 0, [5], id="30 was found damaged: it counts for nothing"),
        pytest.param([20, 30], 1, 0, [], id="not even when one is kept"),
    ],
)
def test_superseded_by_step_20(
    steps: list[int], keep: int, keep_every: int, gone: list[int]
) -> None:
    assert superseded_steps(steps, 20, keep=keep, keep_every=keep_every) == gone
