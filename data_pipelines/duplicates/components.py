"""Connected components of things that are near each other, found through tables of keys.

Near things have equal keys in at least one of many tables. In every table, the things with equal
keys are compared unless they are connected already, and connected where they are near. Which pairs
are compared first changes nothing, since only the components are kept.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
IsNear = Callable[[Positions, Positions], NDArray[np.bool_]]
"""Says which pairs are near, bool [pairs], of two arrays of positions."""

POSITION_BITS = 32
_POSITION_MASK = np.uint64((1 << POSITION_BITS) - 1)
_PAIRS_AT_ONCE = 1 << 20
_ENTRIES_AT_ONCE = 1 << 24
"""Entries of a table that are sorted at once; 128 MiB."""
_ROWS_AT_ONCE = 1 << 16
_SHIFT = np.uint64(POSITION_BITS)


class Components:
    """Sets of connected positions; each is known by its smallest position."""

    def __init__(self, size: int, file: Path) -> None:
        """Begin with every position by itself.

        Args:
            size: number of positions.
            file: file to create for the array, which the kernel may move out of memory.
        """
        assert 0 < size < 1 << POSITION_BITS, size
        self.smallest = np.asarray(np.memmap(file, dtype=np.int64, mode="w+", shape=(size,)))
        self.smallest[:] = np.arange(size)
        self.num_compared = 0
        """Pairs that were compared."""

    def connect_equal_keys(self, entries: NDArray[np.uint64], is_near: IsNear) -> None:
        """Compare all positions with equal keys, and connect the near ones.

        Work grows with the pairs of equal keys that are not connected yet, memory does not.

        Args:
            entries: key in the upper 32 bits, position in the lower, uint64 [n], sorted.
            is_near: compares.
        """
        keys = entries >> _SHIFT
        positions = (entries & _POSITION_MASK).astype(np.int64)
        distance = 1  # between the two members of a pair in the sorted order
        first = np.flatnonzero(keys[1:] == keys[:-1])
        while len(first):
            for start in range(0, len(first), _PAIRS_AT_ONCE):
                block = first[start : start + _PAIRS_AT_ONCE]
                self._connect(positions[block], positions[block + distance], is_near)
            if distance & (distance - 1) == 0:
                first = self._open_groups(first, distance, keys, positions)
            distance += 1
            first = first[first + distance < len(keys)]
            first = first[keys[first] == keys[first + distance]]

    def groups(self) -> tuple[Positions, Positions]:
        """Return the members of all components of two or more, and the smallest of each.

        Returns:
            two arrays, int64 [members], in order of the component, then of the member.
        """
        others = [np.zeros(0, dtype=np.int64)]
        for start, end in blocks(len(self.smallest)):
            is_other = self.smallest[start:end] != np.arange(start, end)
            others.append(np.flatnonzero(is_other) + start)
        members = np.concatenate(others)
        smallest = self.smallest.take(members)
        members = np.concatenate([members, np.unique(smallest)])
        smallest = self.smallest.take(members)
        order = np.lexsort((members, smallest))
        return members[order], smallest[order]

    def _connect(self, left: Positions, right: Positions, is_near: IsNear) -> None:
        apart = self.smallest.take(left) != self.smallest.take(right)
        left, right = left[apart], right[apart]
        self.num_compared += len(left)
        near = is_near(left, right)
        for one, other in zip(left[near].tolist(), right[near].tolist(), strict=True):
            one, other = self._root(one), self._root(other)
            self.smallest[max(one, other)] = min(one, other)
        if near.any():
            self._flatten()

    def _root(self, position: int) -> int:
        while (parent := int(self.smallest[position])) != position:
            position = parent
        return position

    def _flatten(self) -> None:
        is_flat = False
        while not is_flat:
            is_flat = True
            for start, end in blocks(len(self.smallest)):
                block = self.smallest[start:end]
                roots = self.smallest.take(block)
                moved = np.flatnonzero(roots != block)
                block[moved] = roots[moved]  # writes no page that does not change
                is_flat = is_flat and not len(moved)

    def _open_groups(
        self, first: Positions, distance: int, keys: NDArray[np.uint64], positions: Positions
    ) -> Positions:
        """Return `first` without groups of equal keys in which no pair is left to compare.

        Pairs that are farther apart have their members among `first` and those `distance` after.
        """
        key = keys[first]
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        sizes = np.diff(np.append(starts, len(first)))
        left = self.smallest.take(positions[first])
        right = self.smallest.take(positions[first + distance])
        lowest = np.minimum.reduceat(np.minimum(left, right), starts)
        highest = np.maximum.reduceat(np.maximum(left, right), starts)
        return first[~np.repeat(lowest == highest, sizes)]


def sorted_entries(
    size: int, make: Callable[[int, int], NDArray[np.uint64]], folder: Path
) -> Iterator[NDArray[np.uint64]]:
    """Yield the entries of a table in pieces: each sorted, and no key in two of them.

    Args:
        size: number of entries.
        make: returns the entries of the positions from a first to a last one, exclusive, each with
            its key in the upper 32 bits and its position in the lower, uint64 [positions].
        folder: scratch folder, for tables that are larger than memory should be.
    """
    num_pieces = -(-size // _ENTRIES_AT_ONCE)
    if num_pieces == 1:
        entries = np.empty(size, dtype=np.uint64)
        for start, end in blocks(size):
            entries[start:end] = make(start, end)
        entries.sort()
        yield entries
        return
    paths = [folder / f"table-{piece}.bin" for piece in range(num_pieces)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for start, end in blocks(size):
            entries = make(start, end)
            piece_of = (entries >> _SHIFT) * np.uint64(num_pieces) >> _SHIFT
            for piece, file in enumerate(files):
                file.write(entries[piece_of == piece].tobytes())
    for path in paths:
        entries = np.fromfile(path, dtype=np.uint64)
        path.unlink()
        entries.sort()
        yield entries


def one_ahead(tables: Iterator[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
    """Yield the same in the same order; a thread makes the next one while one is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(next, tables, None)
        while (entries := following.result()) is not None:
            following = pool.submit(next, tables, None)
            yield entries


def blocks(size: int) -> Iterator[tuple[int, int]]:
    """Yield the beginnings and ends of consecutive positions."""
    for start in range(0, size, _ROWS_AT_ONCE):
        yield start, min(start + _ROWS_AT_ONCE, size)
