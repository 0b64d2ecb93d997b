"""Connected components of things that are near each other, found through tables of keys.

Near things have equal keys in at least one of many tables. In every table, the things with equal
keys are compared unless they are connected already, and connected where they are near. Which pairs
are compared first changes nothing, since only the components are kept.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
IsNear = Callable[[Positions, Positions], NDArray[np.bool_]]
"""Says which pairs are near, bool [pairs], of two arrays of positions."""

POSITION_BITS = 32
_POSITION_MASK = np.uint64((1 << POSITION_BITS) - 1)
_PAIRS_AT_ONCE = 1 << 20


class Components:
    """Sets of connected positions; each is known by its smallest position."""

    def __init__(self, size: int, file: Path) -> None:
        """Begin with every position by itself.

        Args:
            size: number of positions.
            file: file to create for the array, which the kernel may move out of memory.
        """
        assert 0 < size < 1 << POSITION_BITS, size
        self.smallest = np.memmap(file, dtype=np.int64, mode="w+", shape=(size,))
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
        keys = entries >> np.uint64(POSITION_BITS)
        positions = (entries & _POSITION_MASK).astype(np.int64)
        distance = 1  # between the two members of a pair in the sorted order
        first = np.flatnonzero(keys[1:] == keys[:-1])
        while len(first):
            for start in range(0, len(first), _PAIRS_AT_ONCE):
                block = first[start : start + _PAIRS_AT_ONCE]
                self._connect(positions[block], positions[block + distance], is_near)
            if distance & (distance - 1) == 0:
                first = self._open_groups(first, keys, positions)
            distance += 1
            first = first[first + distance < len(keys)]
            first = first[keys[first] == keys[first + distance]]

    def groups(self) -> tuple[Positions, Positions]:
        """Return the members of all components of two or more, and the smallest of each.

        Returns:
            two arrays, int64 [members], in order of the component, then of the member.
        """
        sizes = np.bincount(self.smallest, minlength=len(self.smallest))
        members = np.flatnonzero(sizes[self.smallest] > 1)
        smallest = np.asarray(self.smallest[members])
        order = np.lexsort((members, smallest))
        return members[order], smallest[order]

    def _connect(self, left: Positions, right: Positions, is_near: IsNear) -> None:
        apart = self.smallest[left] != self.smallest[right]
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
        while not np.array_equal(roots := self.smallest[self.smallest], self.smallest):
            self.smallest[:] = roots

    def _open_groups(
        self, first: Positions, keys: NDArray[np.uint64], positions: Positions
    ) -> Positions:
        """Return `first` without groups of equal keys that are connected throughout."""
        key = keys[first]
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        sizes = np.diff(np.append(starts, len(first)))
        component = self.smallest[positions[first]]
        whole = np.minimum.reduceat(component, starts) == np.maximum.reduceat(component, starts)
        return first[~np.repeat(whole, sizes)]
