"""The nearest of a few hashes for each of many, where one is near enough.

The same tables of sampled bits serve as for near hashes within one set.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_pipelines.duplicates.components import POSITION_BITS, blocks
from data_pipelines.duplicates.near_hashes import Table, choose_tables, make_tables
from data_pipelines.duplicates.pdq import hamming_distances

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Positions among the many and among the few, int64 [pairs] each."""

MAX_PAIRS_COMPARED = 1 << 26
"""Most pairs where every one is compared, so that none is missed."""
_PAIRS_AT_ONCE = 1 << 20
_SHIFT = np.uint64(POSITION_BITS)
_POSITION_MASK = np.uint64((1 << POSITION_BITS) - 1)
_PRESENCE_BITS = 20


def nearest_of_few(
    hashes: NDArray[np.uint64], few: NDArray[np.uint64], threshold: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return which hashes are near one of a few, which one, and the distance.

    Args:
        hashes: uint64 [n, 4].
        few: uint64 [m, 4]; they and their tables are in memory.
        threshold: largest Hamming distance of near hashes.

    Returns:
        positions in `hashes` in order; the nearest one's position in `few`, the first of equally
        near ones; distances in bits; int64 [found] each.
    """
    found: list[NDArray[np.int64]] = [np.zeros((0, 3), dtype=np.int64)]
    for left, right in _candidates(hashes, few, threshold):
        distances = hamming_distances(hashes.take(left, axis=0), few.take(right, axis=0)).astype(
            np.int64
        )
        near = distances <= threshold
        if near.any():
            found.append(np.stack([left[near], distances[near], right[near]], axis=1))
    rows = np.unique(np.concatenate(found), axis=0)  # in order of position, distance, other
    first = np.ones(len(rows), dtype=np.bool_)
    first[1:] = rows[1:, 0] != rows[:-1, 0]
    positions, distances, others = rows[first].T
    return positions, others, distances


def _candidates(
    hashes: NDArray[np.uint64], few: NDArray[np.uint64], threshold: int
) -> Iterator[Pairs]:
    """Yield the pairs to compare, some more than once."""
    if len(hashes) * len(few) <= MAX_PAIRS_COMPARED:
        step = max(1, _PAIRS_AT_ONCE // len(few))
        others = np.arange(len(few))
        for start in range(0, len(hashes), step):
            block = np.arange(start, min(start + step, len(hashes)))
            yield np.repeat(block, len(few)), np.tile(others, len(block))
        return
    tables = choose_tables(
        num_entries=len(hashes), num_pairs=len(hashes) * len(few), threshold=threshold
    )
    for table in make_tables(tables):
        entries = np.sort(table.entries(few, 0, len(few)))
        yield from _of_table(table, hashes, entries)


def _of_table(
    table: Table, hashes: NDArray[np.uint64], entries: NDArray[np.uint64]
) -> Iterator[Pairs]:
    keys = entries >> _SHIFT
    shift = np.uint64(32 - _PRESENCE_BITS)
    is_present = np.zeros(1 << _PRESENCE_BITS, dtype=np.bool_)
    is_present[keys >> shift] = True
    for start, end in blocks(len(hashes)):
        wanted = table.entries(hashes, start, end)
        wanted = wanted[is_present[wanted >> (shift + _SHIFT)]]
        key, position = wanted >> _SHIFT, (wanted & _POSITION_MASK).astype(np.int64)
        first = np.searchsorted(keys, key)
        place = 0
        while len(position):
            at = first + place
            inside = at < len(keys)
            first, key, position, at = first[inside], key[inside], position[inside], at[inside]
            same = keys[at] == key
            first, key, position, at = first[same], key[same], position[same], at[same]
            if len(position):
                yield position, (entries[at] & _POSITION_MASK).astype(np.int64)
            place += 1
