"""Confidence intervals of means, by drawing the values again.

Source: the percentile bootstrap (Efron 1979).
"""

from collections.abc import Sequence

import numpy as np

_RESAMPLES = 1000
_LEVEL = 0.95


def bootstrap_interval(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean.

    A function that only rises or falls, such as PSNR of an error, has its interval at the same
    places.

    Args:
        values: independent values, at least one.
        seed: seed of the draws; the same values and seed give the same interval.
    """
    numbers = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    means = [
        numbers[generator.integers(0, len(numbers), len(numbers))].mean() for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
