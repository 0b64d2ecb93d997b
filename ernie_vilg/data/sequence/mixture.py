"""The mixture of data sets: each position names a data set, by arithmetic.

`MixtureOrder` is a pure function from a position of the training sequence to a data set and a
position in that data set's own sequence. Positions are cut into cycles of 65,536. Each data set has
its fraction of a cycle as a whole number of positions, and a random generator seeded by seed,
segment and cycle shuffles them. Fractions are therefore exact over every cycle. The number of
samples drawn from a data set before a position is a product and one look into a cycle: nothing is
counted on the way, and nothing is kept in a checkpoint.

Weights change where a new segment begins, within a cycle too. Every data set continues where it
was: its own sequence has neither gap nor repetition, and the part before the change stays as it
was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from ernie_vilg.errors import InputError

CYCLE_LENGTH = 65_536
"""Positions over which fractions are exact; 1 in 65,536 is the smallest fraction."""

_MIXTURE_STREAM = 3
"""Random stream of mixtures; `ernie_vilg.data.sequence.order` has the streams 0 to 2."""


@dataclass(frozen=True, kw_only=True)
class MixtureSegment:
    """A part of the training sequence in which the weights of the data sets stay the same."""

    first_position: int
    """First position of the segment; 0 for the first segment."""
    weights: tuple[float, ...]
    """Weight of the samples of each data set, on any scale; 0 draws none."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights):
            raise InputError(f"weights {self.weights}: each must be 0 or above, and finite")
        if not any(self.weights):
            raise InputError(f"weights {self.weights}: at least one must be above 0")


class MixtureOrder:
    """The data set of every position."""

    def __init__(self, num_data_sets: int, segments: Sequence[MixtureSegment], seed: int) -> None:
        """Prepare the order.

        Args:
            num_data_sets: data sets that are mixed.
            segments: segments in the order of their first positions.
            seed: seed of the order.

        Raises:
            InputError: the first positions do not begin at 0 and increase, a segment has another
                number of weights than there are data sets, or more weights are above 0 than a
                cycle has positions.
        """
        first_positions = [segment.first_position for segment in segments]
        if first_positions[:1] != [0] or sorted(set(first_positions)) != first_positions:
            raise InputError(
                f"mixture segments begin at positions {first_positions}: the first must begin at 0 "
                "and each other after the one before"
            )
        for segment in segments:
            if len(segment.weights) != num_data_sets:
                raise InputError(
                    f"the mixture segment at position {segment.first_position} has "
                    f"{len(segment.weights)} weights for {num_data_sets} data sets: give one per "
                    "data set"
                )
        self._num_data_sets = num_data_sets
        self._seed = seed
        self._first_positions = np.array(first_positions, dtype=np.int64)
        self._parts = np.array([cycle_parts(segment.weights) for segment in segments], np.int64)
        # A cycle is needed at each of its positions, and two cycles at once at a border.
        self._cycle = lru_cache(maxsize=4)(self._shuffle_cycle)
        self._drawn_before_segment = np.zeros_like(self._parts)
        for segment_index, length in enumerate(np.diff(self._first_positions).tolist()):
            self._drawn_before_segment[segment_index + 1] = self._drawn(segment_index, length)

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return data sets, and positions within their own sequences.

        Args:
            positions: positions of the training sequence, from 0, in any order, int64 [samples].

        Returns:
            indices of data sets, and positions from 0, int64 [samples] each.
        """
        assert (positions >= 0).all(), positions
        if self._num_data_sets == 1:
            return np.zeros_like(positions), positions.copy()
        segments = np.searchsorted(self._first_positions, positions, side="right") - 1
        cycles, offsets = np.divmod(positions - self._first_positions[segments], CYCLE_LENGTH)
        data_sets, own_positions = np.empty_like(positions), np.empty_like(positions)
        # Sorted, so that each cycle is shuffled once.
        order = np.lexsort((cycles, segments))
        changes = (np.diff(segments[order]) != 0) | (np.diff(cycles[order]) != 0)
        for rows in np.split(order, np.flatnonzero(changes) + 1):
            if not len(rows):
                continue
            segment, cycle = int(segments[rows[0]]), int(cycles[rows[0]])
            drawn = self._drawn_before_segment[segment] + cycle * self._parts[segment]
            names, ranks = self._cycle(segment, cycle)
            data_sets[rows] = names[offsets[rows]]
            own_positions[rows] = drawn[data_sets[rows]] + ranks[offsets[rows]]
        return data_sets, own_positions

    def drawn_before(self, position: int) -> np.ndarray:
        """Return the samples drawn from each data set before a position, int64 [data_sets]."""
        segment = int(np.searchsorted(self._first_positions, position, side="right")) - 1
        return self._drawn(segment, position - int(self._first_positions[segment]))

    def _drawn(self, segment: int, count: int) -> np.ndarray:
        """Return the samples drawn from each data set before an offset into a segment."""
        cycle, rest = divmod(count, CYCLE_LENGTH)
        drawn: np.ndarray = self._drawn_before_segment[segment] + cycle * self._parts[segment]
        if rest:
            names, _ = self._cycle(segment, cycle)
            drawn += np.bincount(names[:rest], minlength=self._num_data_sets)
        return drawn

    def _shuffle_cycle(self, segment: int, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Return, per position of a cycle, its data set and the data set's positions before it."""
        parts = self._parts[segment]
        in_order = np.repeat(np.arange(self._num_data_sets, dtype=np.uint16), parts)
        sequence = np.random.SeedSequence([self._seed, _MIXTURE_STREAM, segment, cycle])
        names = np.random.Generator(np.random.Philox(sequence)).permutation(in_order)
        ranks = np.empty(CYCLE_LENGTH, np.int32)
        firsts = np.cumsum(parts) - parts
        ranks[np.argsort(names, kind="stable")] = np.arange(CYCLE_LENGTH) - firsts.repeat(parts)
        return names, ranks


def cycle_parts(weights: Sequence[float]) -> list[int]:
    """Return the number of a cycle's positions that each data set has.

    Less than one position becomes one; the other data sets divide the rest, rounded by largest
    remainder.

    Args:
        weights: weight per data set, on any scale; 0 has no position.

    Raises:
        InputError: there are more weights above 0 than positions.
    """
    # Fractions: the same on every machine, whatever the scale.
    remaining = {index: Fraction(weight) for index, weight in enumerate(weights) if weight > 0}
    if len(remaining) > CYCLE_LENGTH:
        raise InputError(
            f"{len(remaining)} data sets have weights above 0 where {CYCLE_LENGTH} can be mixed: "
            "merge some of them"
        )
    rest, parts = CYCLE_LENGTH, [0] * len(weights)
    while True:
        unit = rest / sum(remaining.values())
        small = [index for index, weight in remaining.items() if weight * unit < 1]
        if not small:
            break
        for index in small:
            parts[index] = 1
            del remaining[index]
        rest -= len(small)
    exact = {index: weight * unit for index, weight in remaining.items()}
    for index, part in exact.items():
        parts[index] = math.floor(part)
    missing = rest - sum(parts[index] for index in exact)
    for index in sorted(exact, key=lambda index: parts[index] - exact[index])[:missing]:
        parts[index] += 1
    return parts
