"""Which data set gives the pair at a position, by arithmetic.

`MixtureOrder` is a pure function from a position of the training sequence to a data set and a
position in that data set's own sequence. Positions are cut into cycles of 65,536. In each cycle a
data set has its share as a whole number of positions, and a random generator named by seed, phase
and cycle shuffles them. Shares are therefore exact over every cycle, and how often a data set was
drawn before a position is a product and one look into a cycle: nothing is counted on the way, and
nothing is kept in a checkpoint.

Weights change where a new phase begins, within a cycle too. Every data set goes on where it was:
its own sequence has neither gap nor repetition, and what came before the change stays as it was.

Source: ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from ernie_vilg.errors import InputError

CYCLE_LENGTH = 65_536
"""Positions over which shares are exact; 1 in 65,536 is the smallest share."""

_MIXTURE_STREAM = 3
"""Beside the streams of `ernie_vilg.data.sequence.order`."""


@dataclass(frozen=True, kw_only=True)
class MixturePhase:
    """The weights of the data sets, from a position on."""

    first_position: int
    """Of the training sequence; that of the first phase is 0."""
    weights: tuple[float, ...]
    """Share of the samples per data set, on any scale; 0 draws none."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights):
            raise InputError(f"weights {self.weights}: each must be 0 or above, and finite")
        if not any(self.weights):
            raise InputError(f"weights {self.weights}: at least one must be above 0")


class MixtureOrder:
    """The data set of every position."""

    def __init__(self, num_data_sets: int, phases: Sequence[MixturePhase], seed: int) -> None:
        """Prepare the order.

        Args:
            num_data_sets: data sets that are mixed.
            phases: in the order of their first positions.
            seed: names the order.

        Raises:
            InputError: the phases do not begin at 0 and increase, or their weights are not as
                many as the data sets, or more are above 0 than a cycle has positions.
        """
        first_positions = [phase.first_position for phase in phases]
        if first_positions[:1] != [0] or sorted(set(first_positions)) != first_positions:
            raise InputError(
                f"phases begin at positions {first_positions}: the first must begin at 0 and each "
                "other after the one before"
            )
        for phase in phases:
            if len(phase.weights) != num_data_sets:
                raise InputError(
                    f"the phase at position {phase.first_position} has {len(phase.weights)} "
                    f"weights for {num_data_sets} data sets: give one per data set"
                )
        self._num_data_sets = num_data_sets
        self._seed = seed
        self._first_positions = np.array(first_positions, dtype=np.int64)
        self._parts = np.array([cycle_parts(phase.weights) for phase in phases], dtype=np.int64)
        # A cycle is met again at each of its positions, and two are alive at a border.
        self._cycle = lru_cache(maxsize=4)(self._shuffle_cycle)
        self._drawn_before_phase = np.zeros_like(self._parts)
        for phase_index, length in enumerate(np.diff(self._first_positions).tolist()):
            self._drawn_before_phase[phase_index + 1] = self._drawn(phase_index, length)

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return data sets, and positions within their own sequences.

        Args:
            positions: of the training sequence, from 0, in any order, int64 [samples].

        Returns:
            indices of data sets, and positions from 0, int64 [samples] each.
        """
        assert (positions >= 0).all(), positions
        if self._num_data_sets == 1:
            return np.zeros_like(positions), positions.copy()
        phases = np.searchsorted(self._first_positions, positions, side="right") - 1
        cycles, offsets = np.divmod(positions - self._first_positions[phases], CYCLE_LENGTH)
        data_sets, own_positions = np.empty_like(positions), np.empty_like(positions)
        # Sorted, so that each cycle is shuffled once.
        order = np.lexsort((cycles, phases))
        changes = (np.diff(phases[order]) != 0) | (np.diff(cycles[order]) != 0)
        for rows in np.split(order, np.flatnonzero(changes) + 1):
            if not len(rows):
                continue
            phase, cycle = int(phases[rows[0]]), int(cycles[rows[0]])
            drawn = self._drawn_before_phase[phase] + cycle * self._parts[phase]
            names, ranks = self._cycle(phase, cycle)
            data_sets[rows] = names[offsets[rows]]
            own_positions[rows] = drawn[data_sets[rows]] + ranks[offsets[rows]]
        return data_sets, own_positions

    def drawn_before(self, position: int) -> np.ndarray:
        """Return how many of the positions before one are each data set's, int64 [data_sets]."""
        phase = int(np.searchsorted(self._first_positions, position, side="right")) - 1
        return self._drawn(phase, position - int(self._first_positions[phase]))

    def _drawn(self, phase: int, count: int) -> np.ndarray:
        """Return what each data set gave up to so many positions into a phase."""
        cycle, rest = divmod(count, CYCLE_LENGTH)
        drawn: np.ndarray = self._drawn_before_phase[phase] + cycle * self._parts[phase]
        if rest:
            names, _ = self._cycle(phase, cycle)
            drawn += np.bincount(names[:rest], minlength=self._num_data_sets)
        return drawn

    def _shuffle_cycle(self, phase: int, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Return data set, and number of its positions before, per position of a cycle."""
        parts = self._parts[phase]
        in_order = np.repeat(np.arange(self._num_data_sets, dtype=np.uint16), parts)
        sequence = np.random.SeedSequence([self._seed, _MIXTURE_STREAM, phase, cycle])
        names = np.random.Generator(np.random.Philox(sequence)).permutation(in_order)
        ranks = np.empty(CYCLE_LENGTH, np.int32)
        firsts = np.cumsum(parts) - parts
        ranks[np.argsort(names, kind="stable")] = np.arange(CYCLE_LENGTH) - firsts.repeat(parts)
        return names, ranks


def cycle_parts(weights: Sequence[float]) -> list[int]:
    """Return how many of a cycle's positions each data set has.

    A share below one position becomes one; the others share the rest, rounded by largest
    remainder.

    Args:
        weights: share per data set, on any scale; 0 has no position.

    Raises:
        InputError: there are more weights above 0 than positions.
    """
    # Fractions: the same on every machine, whatever the scale.
    shared = {index: Fraction(weight) for index, weight in enumerate(weights) if weight > 0}
    if len(shared) > CYCLE_LENGTH:
        raise InputError(
            f"{len(shared)} data sets have weights above 0 where {CYCLE_LENGTH} can be mixed: put "
            "some of them together"
        )
    rest, parts = CYCLE_LENGTH, [0] * len(weights)
    while True:
        unit = rest / sum(shared.values())
        small = [index for index, weight in shared.items() if weight * unit < 1]
        if not small:
            break
        for index in small:
            parts[index] = 1
            del shared[index]
        rest -= len(small)
    exact = {index: weight * unit for index, weight in shared.items()}
    for index, share in exact.items():
        parts[index] = math.floor(share)
    missing = rest - sum(parts[index] for index in exact)
    for index in sorted(exact, key=lambda index: parts[index] - exact[index])[:missing]:
        parts[index] += 1
    return parts
