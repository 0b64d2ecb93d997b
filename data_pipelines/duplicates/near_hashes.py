"""PDQ hashes within a Hamming distance of each other, by bit sampling.

Every table takes some of the 256 bits, chosen once with a fixed seed. Two hashes with equal bits
there are compared in full. Hashes at the threshold that differ in random bits meet in at least one
table with a probability of `RECALL`, nearer ones more often. Few hashes are compared pair by pair
instead, and none is missed.

Source: Indyk and Motwani 1998, "Approximate Nearest Neighbors"; the arrangement is ours.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipelines.duplicates.components import POSITION_BITS, Components
from data_pipelines.duplicates.pdq import NUM_BITS, hamming_distances

RECALL = 0.995
"""Probability of finding two hashes at the threshold that differ in random bits."""
MAX_COMPARED_BY_PAIR = 8192
"""Most hashes that are compared pair by pair."""
_ENTRIES_AT_ONCE = 1 << 24
"""Entries of a table that are sorted at once; 128 MiB."""
_ROWS_AT_ONCE = 1 << 16
_SEED = 31


@dataclass(frozen=True, kw_only=True)
class Tables:
    """How many tables there are, and how many bits each takes."""

    number: int
    bits: int


def choose_tables(num_hashes: int, threshold: int) -> Tables:
    """Return the tables with the least work.

    More bits mean fewer pairs to compare per table, but more tables for the same recall.

    Args:
        num_hashes: number of distinct hashes.
        threshold: largest Hamming distance of near hashes.
    """

    def work(tables: Tables) -> float:
        # Making, sorting and reading an entry takes about as long as comparing two pairs.
        pairs = num_hashes * num_hashes / 2.0 ** (tables.bits + 1)
        return tables.number * (2 * num_hashes + pairs)

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
        return hamming_distances(hashes[left], hashes[right]) <= threshold

    if len(hashes) <= MAX_COMPARED_BY_PAIR:
        one_key = np.arange(len(hashes), dtype=np.uint64)
        components.connect_equal_keys(one_key, is_near)
        return
    generator = np.random.default_rng(_SEED)
    tables = choose_tables(len(hashes), threshold)
    for _ in range(tables.number):
        bits = generator.permutation(NUM_BITS)[: tables.bits]
        factors = generator.integers(1 << 63, size=4, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        for entries in _sorted_entries(hashes, _mask(bits), factors, folder):
            components.connect_equal_keys(entries, is_near)


def _tables_of(bits: int, threshold: int) -> Tables:
    # Probability that none of the sampled bits is one of those that differ.
    meets = math.comb(NUM_BITS - threshold, bits) / math.comb(NUM_BITS, bits)
    number = 1 if meets == 1 else math.ceil(math.log(1 - RECALL) / math.log1p(-meets))
    return Tables(number=number, bits=bits)


def _mask(bits: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash, uint64 [4], in which the given bits are set."""
    is_set = np.zeros(NUM_BITS, dtype=np.bool_)
    is_set[bits] = True
    return np.packbits(is_set).view(">u8").astype(np.uint64)


def _sorted_entries(
    hashes: NDArray[np.uint64], mask: NDArray[np.uint64], factors: NDArray[np.uint64], folder: Path
):
    """Yield a table in pieces: keys above positions, sorted; no key is in two pieces."""
    num_pieces = -(-len(hashes) // _ENTRIES_AT_ONCE)
    if num_pieces == 1:
        entries = np.empty(len(hashes), dtype=np.uint64)
        for start in range(0, len(hashes), _ROWS_AT_ONCE):
            end = min(start + _ROWS_AT_ONCE, len(hashes))
            entries[start:end] = _entries(hashes, start, end, mask, factors)
        entries.sort()
        yield entries
        return
    paths = [folder / f"table-{piece}.bin" for piece in range(num_pieces)]
    files = [path.open("wb") for path in paths]
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, len(hashes))
        block = _entries(hashes, start, end, mask, factors)
        piece_of = (block >> np.uint64(POSITION_BITS)) * np.uint64(num_pieces) >> np.uint64(32)
        for piece, file in enumerate(files):
            file.write(block[piece_of == piece].tobytes())
    for file in files:
        file.close()
    for path in paths:
        entries = np.fromfile(path, dtype=np.uint64)
        path.unlink()
        entries.sort()
        yield entries


def _entries(
    hashes: NDArray[np.uint64],
    start: int,
    end: int,
    mask: NDArray[np.uint64],
    factors: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    masked = hashes[start:end] & mask
    masked *= factors
    mixed = masked[:, 0] + masked[:, 1] + masked[:, 2] + masked[:, 3]
    key_bits = np.uint64(((1 << 32) - 1) << POSITION_BITS)
    return (mixed & key_bits) | np.arange(start, end, dtype=np.uint64)
