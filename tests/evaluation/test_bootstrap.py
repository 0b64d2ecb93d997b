"""Intervals by drawing again cover the mean as often as they say."""

import numpy as np
import pytest

from ernie_vilg.evaluation.bootstrap import bootstrap_interval


def test_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)

    low, high = bootstrap_interval(values.tolist(), seed=1)

    margin = 1.96 * values.std() / len(values) ** 0.5
    assert low == pytest.approx(values.mean() - margin, abs=margin / 8)
    assert high == pytest.approx(values.mean() + margin, abs=margin / 8)


def test_equal_values_have_no_width() -> None:
    assert bootstrap_interval([2.5] * 4, seed=0) == (2.5, 2.5)


def test_same_seed_gives_the_same_interval() -> None:
    values = [1.0, 5.0, 2.0]

    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
