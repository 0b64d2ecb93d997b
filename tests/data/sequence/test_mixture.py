"""Shares are exact, no data set loses or repeats a sample, and nothing but the position counts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ernie_vilg.data.sequence.mixture import CYCLE_LENGTH, MixtureOrder, MixtureSegment, cycle_parts
from ernie_vilg.data.sequence.sample_reader import SampleReader
from ernie_vilg.data.sequence.sample_sequence import DataSource
from tests.data.token_shards import MODEL, sequence_of, write_token_shards


def mixture(*phases: tuple[int, Sequence[float]], seed: int = 0) -> MixtureOrder:
    return MixtureOrder(
        len(phases[0][1]),
        [
            MixtureSegment(first_position=position, weights=tuple(weights))
            for position, weights in phases
        ],
        seed,
    )


def positions(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.int64)


def assert_equal(left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> None:
    assert left[0].tolist() == right[0].tolist()
    assert left[1].tolist() == right[1].tolist()


def weights_of(num_data_sets: int) -> st.SearchStrategy[list[float]]:
    weight = st.sampled_from([0.0, 0.0, 1e-9, 0.3, 1.0, 7.0]) | st.floats(0, 1e9)
    return st.lists(weight, min_size=num_data_sets, max_size=num_data_sets).filter(any)


@st.composite
def mixtures(draw: Any) -> list[tuple[int, list[float]]]:
    """Up to four phases of up to four data sets; phases end within cycles, and after a few."""
    num_data_sets = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(1, 2 * CYCLE_LENGTH), max_size=3))
    firsts = [0, *np.cumsum(lengths).tolist()]
    return [(first, draw(weights_of(num_data_sets))) for first in firsts]


few = settings(deadline=None, max_examples=25)


@few
@given(phases=mixtures(), seed=st.integers(0, 5))
def test_every_data_set_is_consumed_without_gap_or_repetition(
    phases: list[tuple[int, list[float]]], seed: int
) -> None:
    everything = positions(0, phases[-1][0] + CYCLE_LENGTH // 2)

    data_sets, own_positions = mixture(*phases, seed=seed).split(everything)

    for data_set in range(len(phases[0][1])):
        own = own_positions[data_sets == data_set]
        assert np.array_equal(own, np.arange(len(own)))


@few
@given(weights=weights_of(3), cycle=st.integers(0, 2**46), seed=st.integers(0, 5))
@example(weights=[1.0, 2.0, 1.0], cycle=2**46, seed=0)  # up to position 2^62
def test_shares_are_exact_over_every_cycle(weights: list[float], cycle: int, seed: int) -> None:
    order = mixture((0, weights), seed=seed)

    data_sets, own_positions = order.split(positions(cycle * CYCLE_LENGTH, CYCLE_LENGTH))

    for data_set, part in enumerate(cycle_parts(weights)):
        own = own_positions[data_sets == data_set]
        assert own.tolist() == list(range(cycle * part, cycle * part + part))


@few
@given(phases=mixtures(), chosen=st.lists(st.integers(0, 150_000), max_size=50))
def test_any_positions_can_be_asked_for_in_any_order(
    phases: list[tuple[int, list[float]]], chosen: list[int]
) -> None:
    wanted = np.array(chosen, dtype=np.int64)
    data_sets, own_positions = mixture(*phases).split(positions(0, 150_001))

    assert_equal(mixture(*phases).split(wanted), (data_sets[wanted], own_positions[wanted]))


@few
@given(phases=mixtures(), seed=st.integers(0, 5))
def test_a_later_phase_changes_nothing_before_it(
    phases: list[tuple[int, list[float]]], seed: int
) -> None:
    assume(len(phases) > 1)
    before = positions(0, phases[-1][0])

    assert_equal(
        mixture(*phases, seed=seed).split(before), mixture(*phases[:-1], seed=seed).split(before)
    )


@few
@given(phases=mixtures(), place=st.integers(0, 4))
def test_a_data_set_that_is_not_drawn_changes_nothing(
    phases: list[tuple[int, list[float]]], place: int
) -> None:
    place = min(place, len(phases[0][1]))
    with_another = [(first, [*weights[:place], 0.0, *weights[place:]]) for first, weights in phases]
    everything = positions(0, 100_000)

    data_sets, own_positions = mixture(*with_another).split(everything)

    assert place not in data_sets
    assert_equal(
        (data_sets - (data_sets > place), own_positions), mixture(*phases).split(everything)
    )


@few
@given(phases=mixtures(), position=st.integers(0, 150_000))
def test_what_was_drawn_is_counted_without_drawing_it(
    phases: list[tuple[int, list[float]]], position: int
) -> None:
    order = mixture(*phases)
    data_sets, _ = order.split(positions(0, position))

    counts = np.bincount(data_sets, minlength=len(phases[0][1]))
    assert order.drawn_before(position).tolist() == counts.tolist()


def test_one_data_set_is_its_own_sequence() -> None:
    asked = np.array([2**62, 0, 5, 5, 99_999])

    assert_equal(mixture((0, [0.2]), (7, [3.0])).split(asked), (np.zeros(5, np.int64), asked))


def test_a_weight_of_0_switches_a_data_set_off_and_another_phase_on_again() -> None:
    order = mixture((0, [1.0, 1.0]), (1000, [1.0, 0.0]), (3000, [1.0, 1.0]))
    data_sets, own_positions = order.split(positions(0, 4000))

    assert not data_sets[1000:3000].any()
    second = own_positions[data_sets == 1]
    assert second.tolist() == list(range(len(second)))
    assert data_sets[3000:].any()


def test_neighbours_seeds_phases_and_cycles_are_mixed_differently() -> None:
    order = mixture((0, [1.0, 1.0]), (CYCLE_LENGTH, [1.0, 1.0]))
    other_seed = mixture((0, [1.0, 1.0]), seed=1)
    heads = [
        order.split(positions(first, 64))[0].tolist()
        for first in (0, CYCLE_LENGTH, 2 * CYCLE_LENGTH)
    ]
    heads.append(other_seed.split(positions(0, 64))[0].tolist())

    assert len({tuple(head) for head in heads}) == 4
    assert all(16 < sum(head) < 48 for head in heads)


def test_every_sample_of_every_data_set_is_read_once_per_epoch_of_its_own(tmp_path: Path) -> None:
    sizes = {"cc": [5, 7], "wukong": [4, 3]}
    sources = tuple(
        DataSource(
            name=name,
            location=str(tmp_path / name),
            manifest=write_token_shards(tmp_path / name, sizes[name]),
        )
        for name in sizes
    )
    segments = (
        MixtureSegment(first_position=0, weights=(1.0, 1.0)),
        MixtureSegment(first_position=20, weights=(1.0, 3.0)),
    )
    alone = sequence_of(tmp_path / "cc", sources[0].manifest, MODEL)
    reader = SampleReader(replace(alone, sources=sources, mixture=segments))

    rows = reader.read(positions(0, 60))

    reader.close()
    for data_set, source in enumerate(sources):
        codes = rows.content.codes[rows.origins.data_set == data_set, 0].tolist()
        num_samples = source.manifest.num_samples
        assert len(codes) > num_samples
        assert sorted(codes[:num_samples]) == list(range(num_samples))


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        pytest.param([1, 1], [32768, 32768], id="halves"),
        pytest.param([1, 1, 1], [21846, 21845, 21845], id="the first gets what is left over"),
        pytest.param([0, 3], [0, 65536], id="one alone"),
        pytest.param([2, 1e-9], [65535, 1], id="a small weight has one position"),
        pytest.param([1e300, 1e-300, 1e300], [32768, 1, 32767], id="any scale"),
        # 65536 * 0.7 = 45875.2, 65536 * 0.3 = 19660.8
        pytest.param([0.7, 0.3], [45875, 19661], id="largest remainder"),
    ],
)
def test_weights_are_rounded_to_parts_of_a_cycle(weights: list[float], parts: list[int]) -> None:
    assert cycle_parts(weights) == parts


def test_more_data_sets_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="65537 data sets have weights above 0 where 65536 can"):
        cycle_parts([1.0] * 65537)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([(1, [1.0])], "the first must begin at 0"),
        ([(0, [1.0]), (9, [1.0]), (9, [2.0])], r"positions \[0, 9, 9\]"),
        ([(0, [1.0, 1.0]), (9, [1.0])], "position 9 has 1 weights for 2 data sets"),
        ([(0, [0.0, 0.0])], "at least one must be above 0"),
        ([(0, [1.0, -1.0])], "each must be 0 or above"),
        ([(0, [1.0, float("inf")])], "and finite"),
    ],
)
def test_phases_that_say_nothing_or_two_things_are_refused(
    phases: list[tuple[int, list[float]]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(*phases)


def test_the_mixture_is_the_same_on_every_machine() -> None:
    """Written down once: a change of numpy or of ours would break every resume."""
    order = mixture((0, [3.0, 1.0, 2.0]), (8, [0.0, 1.0, 1.0]), seed=7)
    near, far = order.split(positions(0, 12)), order.split(positions(2**40, 12))

    assert near[0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2, 2, 1, 2, 1]
    assert near[1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 5, 1]
    assert far[0].tolist() == [1, 2, 2, 2, 2, 1, 2, 1, 2, 2, 2, 2]
    assert (far[1] - 2**39).tolist() == [-3, -1, 0, 1, 2, -2, 3, -1, 4, 5, 6, 7]
