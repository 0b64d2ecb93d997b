import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.duplicates import components as components_module
from data_pipelines.duplicates import near_hashes, nearest_hashes
from data_pipelines.duplicates.components import Components
from data_pipelines.duplicates.near_hashes import Table, choose_tables, connect_near_hashes
from data_pipelines.duplicates.nearest_hashes import nearest_of_few
from data_pipelines.duplicates.pdq import hamming_distances

Hashes = NDArray[np.uint64]


def random_hashes(number: int, seed: int = 0) -> Hashes:
    generator = np.random.default_rng(seed)
    return generator.integers(1 << 64, size=(number, 4), dtype=np.uint64, endpoint=False)


def altered(hashes: Hashes, distance: int, seed: int = 1) -> Hashes:
    """Return the hashes with as many random bits flipped."""
    generator = np.random.default_rng(seed)
    is_set = np.zeros((len(hashes), 256), dtype=np.bool_)
    for row in is_set:
        row[generator.choice(256, size=distance, replace=False)] = True
    return hashes ^ np.packbits(is_set, axis=1).view(">u8").astype(np.uint64)


def smallest_of_components(hashes: Hashes, threshold: int) -> list[int]:
    """Return the smallest member of every position's component, by comparing all pairs."""
    distances = hamming_distances(hashes[:, None], hashes[None])
    smallest = list(range(len(hashes)))
    for _ in hashes:
        for left, right in zip(*np.nonzero(distances <= threshold), strict=True):
            smallest[left] = min(smallest[left], smallest[right])
    return smallest


def connected(hashes: Hashes, threshold: int, folder: Path) -> list[int]:
    components = Components(len(hashes), folder / "components.bin")
    connect_near_hashes(hashes, threshold, components, folder)
    return [int(smallest) for smallest in components.smallest]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use tables even for few hashes."""
    monkeypatch.setattr(near_hashes, "MAX_COMPARED_BY_PAIR", 0)
    monkeypatch.setattr(nearest_hashes, "MAX_PAIRS_COMPARED", 0)


def test_few_hashes_are_connected_exactly_over_chains(tmp_path: Path) -> None:
    ends = random_hashes(3)
    middle = altered(ends, 20)
    far = altered(middle, 20, seed=2)
    hashes = np.concatenate([far, ends, middle, random_hashes(20, seed=3)])

    found = connected(hashes, 31, tmp_path)

    assert found[:9] == [0, 1, 2] * 3
    assert found == smallest_of_components(hashes, 31)


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_a_chain_in_any_order_is_one_component(tmp_path: Path, order: tuple[int, ...]) -> None:
    lengths = np.array([0, 16, 32, 48])[list(order)]  # bits set: each near to the next one only
    hashes = np.array([[(1 << int(length)) - 1, 0, 0, 0] for length in lengths], np.uint64)

    assert connected(hashes, 17, tmp_path) == [0] * 4


@pytest.mark.usefixtures("sampled")
def test_tables_connect_what_comparing_all_pairs_connects(tmp_path: Path) -> None:
    originals = random_hashes(300)
    copies = [altered(originals, distance) for distance in (1, 8, 16, 24)]
    hashes = np.concatenate([*copies, originals])

    found = connected(hashes, 24, tmp_path)

    assert (np.array(found) == np.tile(np.arange(300), 5)).mean() > 0.995


@pytest.mark.usefixtures("sampled")
def test_recall_at_the_threshold(tmp_path: Path) -> None:
    originals = random_hashes(2000)
    hashes = np.concatenate([originals, altered(originals, 31)])

    found = np.array(connected(hashes, 31, tmp_path)[2000:])

    recall = (found == np.arange(2000)).mean()
    assert recall > 0.99  # the tables are chosen for 0.995
    assert set(found[found != np.arange(2000)]) <= set(range(2000, 4000))


@pytest.mark.usefixtures("sampled")
def test_tables_in_pieces_connect_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals = random_hashes(500)
    hashes = np.concatenate([originals, altered(originals, 20)])
    whole = connected(hashes, 31, tmp_path)

    monkeypatch.setattr(components_module, "_ENTRIES_AT_ONCE", 300)
    monkeypatch.setattr(components_module, "_ROWS_AT_ONCE", 64)

    assert connected(hashes, 31, tmp_path) == whole
    assert len(set(whole)) < 510


def test_a_group_that_is_connected_is_not_compared_further(tmp_path: Path) -> None:
    compared = []

    def is_near(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.bool_]:
        compared.append(len(left))
        return np.ones(len(left), dtype=np.bool_)

    components = Components(4000, tmp_path / "components.bin")
    keys = np.repeat(np.array([5, 9], dtype=np.uint64), 2000)
    components.connect_equal_keys(
        (keys << np.uint64(32)) | np.arange(4000, dtype=np.uint64), is_near
    )

    assert components.smallest.tolist() == [0] * 2000 + [2000] * 2000
    assert compared == [3998]
    assert components.num_compared == 3998


def test_more_hashes_take_longer_keys() -> None:
    few, many = choose_tables(10**5, 10**10, 31), choose_tables(10**7, 10**14, 31)

    assert few.bits < many.bits
    assert few.number < many.number


@pytest.mark.parametrize("way", ["pairs", "tables", "equal keys"])
def test_nearest_one_of_few_is_found_with_its_distance(
    way: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "pairs":
        request.getfixturevalue("sampled")
    if way == "equal keys":
        nothing = np.zeros(4, dtype=np.uint64)
        table = Table(mask=nothing, factors=nothing)
        monkeypatch.setattr(nearest_hashes, "make_tables", lambda tables: [table])
    few = random_hashes(3)
    few = np.concatenate([few, altered(few[1:2], 3)])
    hashes = random_hashes(200, seed=5)
    hashes[7] = few[2]
    hashes[11] = few[3] ^ np.array([1, 0, 0, 0], dtype=np.uint64)
    hashes[150] = altered(few[:1], 32)[0]  # too far

    positions, others, distances = nearest_of_few(hashes, few, 31)

    assert positions.tolist() == [7, 11]
    assert others.tolist() == [2, 3]
    assert distances.tolist() == [0, 1]
