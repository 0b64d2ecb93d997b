"""Captions that are longer than a model's text slots."""

from collections.abc import Mapping


def num_longer(lengths: Mapping[int, int], slots: int) -> int:
    """Return the number of captions that do not fit.

    Args:
        lengths: number of captions by their length in ids, end of text included.
        slots: number of text slots.
    """
    return sum(count for length, count in lengths.items() if length > slots)


def slots_that_fit(lengths: Mapping[int, int], max_fraction: float) -> int:
    """Return the fewest slots that truncate no more than a fraction of the captions.

    Args:
        lengths: number of captions by their length in ids, end of text included; at least one.
        max_fraction: largest fraction of truncated captions.
    """
    allowed = max_fraction * sum(lengths.values())
    return min(length for length in lengths if num_longer(lengths, length) <= allowed)
