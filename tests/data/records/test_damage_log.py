"""Damage is written down once over launches and ranks, and what old versions wrote is read."""

from pathlib import Path

import pytest

from ernie_vilg.data.records.damage_log import DamageCount, DamageLog, read_damage
from ernie_vilg.data.shards.damage import DamageFinding


def finding(
    shard: str, index: int | None, position: int, *, reason: str = "sha256"
) -> DamageFinding:
    return DamageFinding(
        data_set="main",
        shard=shard,
        index=index,
        key="" if index is None else str(index),
        num_samples=10 if index is None else 1,
        reason=reason,
        detail="found",
        position=position,
    )


def test_a_finding_is_written_once_over_all_launches(tmp_path: Path) -> None:
    found = [finding("a.tar", None, 5), finding("b.tar", 3, 6, reason="members")]

    assert DamageLog(tmp_path, 0).write(found) == 2
    assert DamageLog(tmp_path, 0).write([*found, finding("b.tar", 4, 9)]) == 1

    assert read_damage(tmp_path).findings == (*found, finding("b.tar", 4, 9))


def test_damaged_samples_are_counted_once_over_all_ranks(tmp_path: Path) -> None:
    DamageLog(tmp_path, 0).write(
        [finding("a.tar", 3, 40, reason="members"), finding("b.tar", 1, 41)]
    )
    DamageLog(tmp_path, 1).write([finding("b.tar", 1, 33), finding("a.tar", None, 50)])

    summary = read_damage(tmp_path)

    # a.tar is damaged whole, its sample 3 with it; rank 1 met b.tar's first.
    assert [found.position for found in summary.findings] == [33, 40, 50]
    assert summary.num_samples == 11
    assert summary.num_samples_by_reason == {"sha256": 11}


def test_the_count_follows_what_ranks_write(tmp_path: Path) -> None:
    count = DamageCount(tmp_path)
    counts = [count.num_samples()]
    for rank, found in (
        (0, finding("b.tar", 1, 33)),
        (1, finding("b.tar", 1, 7)),
        (1, finding("c", 2, 9)),
    ):
        DamageLog(tmp_path, rank).write([found])
        counts.append(count.num_samples())

    assert counts == [0, 1, 1, 2]


def test_a_torn_line_of_findings_is_counted_and_harms_no_other(tmp_path: Path) -> None:
    DamageLog(tmp_path, 0).write([finding("a.tar", 1, 1)])
    with (tmp_path / "damage-0.jsonl").open("a") as file:
        file.write('{"data_set": "ma')

    DamageLog(tmp_path, 0).write([finding("a.tar", 2, 2)])

    summary = read_damage(tmp_path)
    assert summary.findings == (finding("a.tar", 1, 1), finding("a.tar", 2, 2))
    assert summary.num_unreadable_lines == 1


@pytest.mark.parametrize("line", ["null", "5", "[1]", "{}", "[" * 100_000, '{"shard": "\\ud83d"}'])
def test_a_line_that_is_no_finding_ends_no_start(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    DamageLog(tmp_path, 0).write([finding("a.tar", 1, 1)])
    path = tmp_path / "damage-0.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")

    assert DamageLog(tmp_path, 0).write([finding("a.tar", 1, 1), finding("b.tar", 2, 2)]) == 1

    summary = read_damage(tmp_path)
    assert summary.findings == (finding("a.tar", 1, 1), finding("b.tar", 2, 2))
    assert summary.num_unreadable_lines == 1
    assert f"{path} line 1" in caplog.text


def test_a_finding_with_a_number_where_a_text_belongs_is_none(tmp_path: Path) -> None:
    DamageLog(tmp_path, 0).write([finding("a.tar", 1, 1)])
    path = tmp_path / "damage-0.jsonl"
    path.write_text(path.read_text().replace('"shard": "a.tar"', '"shard": [5]'))

    assert (read_damage(tmp_path).findings, read_damage(tmp_path).num_unreadable_lines) == ((), 1)


def test_findings_of_an_older_version_are_read_and_not_written_again(tmp_path: Path) -> None:
    old = finding("a.tar", 1, 1)
    DamageLog(tmp_path, 0).write([old])
    (tmp_path / "damage-0.jsonl").rename(tmp_path / "losses-0.jsonl")

    count = DamageCount(tmp_path)
    assert count.num_samples() == 1
    assert DamageLog(tmp_path, 0).write([old, finding("b.tar", 2, 2)]) == 1
    assert read_damage(tmp_path).findings == (old, finding("b.tar", 2, 2))
    assert len((tmp_path / "damage-0.jsonl").read_text().splitlines()) == 1
    assert count.num_samples() == 2
