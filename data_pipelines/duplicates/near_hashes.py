"""PDQ hashes within a Hamming distance of each other, by bit sampling.

Every table takes some of the 256 bits, chosen once with a fixed seed. Two hashes with equal bits
there are compared in full. Hashes at the threshold that differ in random bits meet in at least one
table with a probability of `RECALL`, nearer ones more often. Few hashes are compared pair by pair
instead, and none is missed.

Source: Indyk and Motwani 1998, "Approximate Nearest Neighbors"; the arrangement is ours.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipelines.duplicates.components import (
    POSITION_BITS,
    Components,
    one_ahead,
    sorted_entries,
)
from data_pipelines.duplicates.pdq import NUM_BITS, hamming_distances

RECALL = 0.995
"""Probability of finding two hashes at the threshold that differ in random bits."""
MAX_COMPARED_BY_PAIR = 8192
"""Most hashes that are compared pair by pair."""
_SEED = 31
_KEY_BITS = np.uint64(((1 << 32) - 1) << POSITION_BITS)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Number of tables, and of the bits that each takes."""

    number: int
    bits: int


def choose_tables(num_entries: int, num_pairs: int, threshold: int) -> Tables:
    """Return the tables with the least work.

    More bits mean fewer pairs to compare per table, but more tables for the same recall.

    Args:
        num_entries: number of hashes whose keys are made.
        num_pairs: number of pairs of hashes.
        threshold: largest Hamming distance of near hashes.
    """

    def work(tables: Tables) -> float:
        # Making and sorting an entry takes about as long as comparing a pair.
        return tables.number * (num_entries + num_pairs / 2.0**tables.bits)

    return min((_tables_of(bits, threshold) for bits in range(8, 33)), key=work)


def connect_near_hashes(
    hashes: NDArray[np.uint64], threshold: int, components: Components, folder: Path
) -> None:
    """Connect the hashes that are near each other.

    Args:
        hashes: distinct hashes, uint64 [n, 4].
        threshold: largest Hamming distance of near hashes.
        components: of the positions 0 to n - 1.
        folder: scratch folder for tables that are larger than memory should be.
    """

    def is_near(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        # take is four times as fast as indexing.
        return hamming_distances(hashes.take(left, axis=0), hashes.take(right, axis=0)) <= threshold

    hashes = np.asarray(hashes)  # of a memory map

    if len(hashes) <= MAX_COMPARED_BY_PAIR:
        one_key = np.arange(len(hashes), dtype=np.uint64)
        components.connect_equal_keys(one_key, is_near)
        return
    tables = make_tables(choose_tables(len(hashes), len(hashes) ** 2 // 2, threshold))
    for entries in one_ahead(
        entries
        for table in tables
        for entries in sorted_entries(len(hashes), partial(table.entries, hashes), folder)
    ):
        components.connect_equal_keys(entries, is_near)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Bits that a table takes, and how they become a key."""

    mask: NDArray[np.uint64]  # [4]
    factors: NDArray[np.uint64]  # [4]

    def entries(self, hashes: NDArray[np.uint64], start: int, end: int) -> NDArray[np.uint64]:
        """Return key and position of hashes[start:end], uint64 [end - start]."""
        masked = hashes[start:end] & self.mask
        masked *= self.factors
        mixed = masked[:, 0] + masked[:, 1] + masked[:, 2] + masked[:, 3]
        return (mixed & _KEY_BITS) | np.arange(start, end, dtype=np.uint64)


def make_tables(tables: Tables) -> Iterator[Table]:
    """Yield the tables, the same ones at every call."""
    generator = np.random.default_rng(_SEED)
    for _ in range(tables.number):
        is_set = np.zeros(NUM_BITS, dtype=np.bool_)
        is_set[generator.permutation(NUM_BITS)[: tables.bits]] = True
        odd = generator.integers(1 << 63, size=4, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        yield Table(mask=np.packbits(is_set).view(">u8").astype(np.uint64), factors=odd)


def _tables_of(bits: int, threshold: int) -> Tables:
    # Probability that none of the sampled bits is one of those that differ.
    meets = math.comb(NUM_BITS - threshold, bits) / math.comb(NUM_BITS, bits)
    number = 1 if meets == 1 else math.ceil(math.log(1 - RECALL) / math.log1p(-meets))
    return Tables(number=number, bits=bits)
