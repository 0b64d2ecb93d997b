"""Damage beyond the limits stops a run that skips it."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ernie_vilg.data.shards.damage import DamageAccount, DamageFinding, DamageLimits
from ernie_vilg.errors import InputError
from tests.data.epochs import (
    SIZES,
    SKIP,
    read_epoch,
)
from tests.data.token_shards import write_token_shards


def test_too_much_damage_stops_a_run_that_skips(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    (tmp_path / manifest.shards[2].file).unlink()

    with pytest.raises(
        ValueError, match=r"20 samples are damaged where loader.max_damaged_fraction"
    ):
        read_epoch(tmp_path, manifest, loader=replace(SKIP, max_damaged_fraction=0.2))
    assert read_epoch(
        tmp_path, manifest, loader=replace(SKIP, max_damaged_fraction=0.25)
    ).num_damaged


def test_consecutive_damaged_samples_stop_a_run_that_skips(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    for shard in manifest.shards[:3]:
        (tmp_path / shard.file).unlink()

    with pytest.raises(
        ValueError, match=r"consecutive samples are damaged, loader.max_consecutive"
    ):
        read_epoch(tmp_path, manifest, loader=replace(SKIP, max_consecutive_damaged=5))


def test_a_data_set_with_nothing_usable_stops_instead_of_searching_for_ever(
    tmp_path: Path,
) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    for shard in manifest.shards:
        (tmp_path / shard.file).unlink()

    with pytest.raises(ValueError, match="found no usable sample in 64 draws"):
        read_epoch(tmp_path, manifest)


@pytest.mark.parametrize(
    ("batches", "stops"),
    [
        pytest.param(["110", "110", "011"], False, id="never three in a row"),
        pytest.param(["0111"], True, id="within a batch"),
        pytest.param(["001", "11"], True, id="over a border"),
        pytest.param(["001", "1", "1"], True, id="over two borders"),
        pytest.param(["0011", "100"], True, id="ending at a batch's beginning"),
        pytest.param(["1101", "1011"], False, id="broken by one good sample"),
    ],
)
def test_consecutive_damaged_samples_are_counted_over_batches(
    batches: list[str], stops: bool
) -> None:
    account = DamageAccount(DamageLimits(max_consecutive=3, max_samples=1000))
    finding = DamageFinding(
        data_set="main", shard="a.tar", index=0, key="0", num_samples=1, reason="x", detail="",
        position=0,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        if stops:
            stack.enter_context(
                pytest.raises(ValueError, match="3 consecutive samples are damaged")
            )
        for batch in batches:
            account.add([finding], np.array([digit == "1" for digit in batch]))


def test_as_much_damage_as_the_limit_says_is_tolerated_and_not_one_more() -> None:
    account = DamageAccount(DamageLimits(max_consecutive=100, max_samples=3))
    kept = np.array([False])

    account.add([_shard_of_two("a")], kept)
    account.add([_sample("b", 0)], kept)  # 3 in all
    with pytest.raises(InputError, match=r"4 samples are damaged .* allows 3"):
        account.add([_sample("b", 1)], kept)


def _shard_of_two(shard: str) -> DamageFinding:
    return replace(_sample(shard, 0), index=None, key="", num_samples=2)


def _sample(shard: str, index: int) -> DamageFinding:
    return DamageFinding(
        data_set="d",
        shard=shard,
        index=index,
        key=f"{index}",
        num_samples=1,
        reason="sha256",
        detail="differs",
        position=0,
    )
