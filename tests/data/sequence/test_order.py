"""The order visits every sample once per epoch, and depends on nothing but the position."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_vilg.data.sequence.order import SampleOrder
from ernie_vilg.storage.shard_manifest import Manifest, Shard


def manifest_of(sizes: list[int]) -> Manifest:
    shards = tuple(
        Shard(file=f"{index}.tar", samples=size, bytes=0, sha256="", members=())
        for index, size in enumerate(sizes)
    )
    return Manifest(kind="token", shards=shards, settings={}, lineage={})


def places(order: SampleOrder, positions: range) -> list[tuple[int, int]]:
    located = [order.locate(position) for position in positions]
    return [(place.shard_index, place.index) for place in located]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any),
    seed=st.integers(0, 5),
    block=st.integers(1, 10),
    epoch=st.integers(0, 3),
)
def test_every_sample_once_per_epoch(sizes: list[int], seed: int, block: int, epoch: int) -> None:
    order = SampleOrder(manifest_of(sizes), seed, block)
    total = sum(sizes)

    seen = places(order, range(epoch * total, (epoch + 1) * total))

    everything = [(shard, index) for shard, size in enumerate(sizes) for index in range(size)]
    assert sorted(seen) == everything


def test_a_position_can_be_asked_for_in_any_order() -> None:
    sizes = [7, 3, 9, 1, 5]
    forwards = places(SampleOrder(manifest_of(sizes), 1, 2), range(60))
    backwards = places(SampleOrder(manifest_of(sizes), 1, 2), range(59, -1, -1))

    assert backwards == forwards[::-1]


def test_epochs_and_seeds_differ_within_a_shard() -> None:
    order = SampleOrder(manifest_of([50]), seed=1)

    assert places(order, range(50)) != places(order, range(50, 100))
    assert places(order, range(50)) != places(SampleOrder(manifest_of([50]), seed=2), range(50))


def test_epochs_and_seeds_differ() -> None:
    order = SampleOrder(manifest_of([50, 50]), seed=1)

    assert places(order, range(100)) != places(order, range(100, 200))
    assert places(order, range(100)) != places(
        SampleOrder(manifest_of([50, 50]), seed=2), range(100)
    )


def test_a_block_holds_few_shards_and_mixes_them() -> None:
    order = SampleOrder(manifest_of([10] * 12), seed=0, shuffle_block_shards=3)

    for block in range(4):
        shards = [shard for shard, _ in places(order, range(block * 30, block * 30 + 30))]
        assert len(set(shards)) == 3
        assert shards != sorted(shards)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any),
    seed=st.integers(0, 5),
    block=st.integers(1, 10),
    data=st.data(),
)
def test_positions_are_located_alike_alone_and_together(
    sizes: list[int], seed: int, block: int, data: st.DataObject
) -> None:
    order = SampleOrder(manifest_of(sizes), seed, block)
    positions = data.draw(st.lists(st.integers(0, 4 * sum(sizes)), max_size=20))

    _, shard_indices, indices = order.locate_all(np.array(positions, np.int64))

    assert list(zip(shard_indices.tolist(), indices.tolist(), strict=True)) == [
        (place.shard_index, place.index)
        for place in map(SampleOrder(manifest_of(sizes), seed, block).locate, positions)
    ]


def test_replacements_come_from_the_block_and_then_from_everywhere() -> None:
    order = SampleOrder(manifest_of([10] * 12), seed=0, shuffle_block_shards=3)
    own_block = {order.locate(position).shard_index for position in range(30, 60)}

    near = [order.replacement(41, attempt) for attempt in range(16)]
    far = [order.replacement(41, attempt) for attempt in range(16, 64)]

    assert {place.shard_index for place in near} <= own_block
    assert not {place.shard_index for place in far} <= own_block
    assert len(set(near)) > 8  # draws, not one answer
    assert order.replacement(41, 3) == near[3]
    assert [order.replacement(42, attempt) for attempt in range(16)] != near


def test_a_replacement_is_of_the_same_epoch_and_may_be_the_last_of_its_block() -> None:
    order = SampleOrder(manifest_of([1, 1]), seed=0, shuffle_block_shards=1)

    for position in range(4):  # a block holds one sample, which stands in for itself
        assert order.replacement(position, 0) == order.locate(position)


def test_the_next_block_is_known_across_the_end_of_an_epoch() -> None:
    order = SampleOrder(manifest_of([10] * 5), seed=0, shuffle_block_shards=2)

    for position, following in ((0, range(20, 40)), (39, range(40, 50)), (40, range(50, 70))):
        ahead = order.shards_of_next_block(position)
        assert sorted(ahead) == sorted({order.locate(place).shard_index for place in following})


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no samples"):
        SampleOrder(manifest_of([0]), seed=0)


def test_the_order_is_the_same_on_every_machine() -> None:
    """Written down once: a change of numpy or of ours would break every resume."""
    assert places(SampleOrder(manifest_of([3, 4]), seed=7), range(7)) == FIRST_EPOCH_OF_SEED_7


FIRST_EPOCH_OF_SEED_7 = [(0, 1), (1, 2), (1, 3), (1, 0), (1, 1), (0, 0), (0, 2)]
