"""Stages cost about the same, and each has a block."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from ernie_vilg.model.partition import stage_bounds


def costs_of_stages(costs: list[int], bounds: list[int]) -> list[int]:
    return [sum(costs[start:end]) for start, end in pairwise(bounds)]


def test_a_cheap_head_leaves_blocks_evenly_dealt() -> None:
    assert stage_bounds([0, 10, 10, 10, 10, 1], 2) == [0, 3, 6]


def test_a_head_that_costs_as_much_as_two_blocks_is_counted() -> None:
    assert stage_bounds([0, 10, 10, 10, 10, 20], 2) == [0, 4, 6]


@given(
    st.lists(st.integers(0, 20), min_size=3, max_size=9),
    st.data(),
)
def test_no_other_cut_has_a_cheaper_most_expensive_stage(
    costs: list[int], data: st.DataObject
) -> None:
    num_blocks = len(costs) - 2
    num_stages = data.draw(st.integers(1, num_blocks))

    bounds = stage_bounds(costs, num_stages)

    cuts = combinations(range(2, num_blocks + 1), num_stages - 1)
    best = min(max(costs_of_stages(costs, [0, *cut, len(costs)])) for cut in cuts)
    assert max(costs_of_stages(costs, bounds)) == best
    assert bounds[0] == 0
    assert bounds[-1] == len(costs)
    assert all(start < end for start, end in pairwise(bounds))
