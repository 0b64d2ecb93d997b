"""A quarantine is read whole or refused, and a line that excludes nothing is found."""

import os
from pathlib import Path

import pytest

from ernie_vilg.data.sequence.quarantine import Quarantine, QuarantineEntry, read_quarantine
from ernie_vilg.errors import InputError

SHARDS = {"a": {"0.tar", "1.tar"}, "b": {"2.tar"}}


def written(folder: Path, *lines: str) -> Path:
    path = folder / "quarantine.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_foreign_line_ends_within_a_reason_are_text(tmp_path: Path) -> None:
    path = written(tmp_path, '{"key": "1", "reason": "a\u2028b\x85c"}', "", '{"key": "2"}')

    entries = (QuarantineEntry(key="1", reason="a\u2028b\x85c"), QuarantineEntry(key="2"))
    assert read_quarantine(path).entries == entries


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path, '\ufeff{"key": "1"}')

    assert read_quarantine(path).entries == (QuarantineEntry(key="1"),)


@pytest.mark.parametrize(
    "line",
    [
        "null", "5", "[1]", "{}", "[" * 100_000, "no JSON", '{"key": ""}', '{"key": 5}',
        '{"key": "1", "shards": "a.tar"}', '{"key": "\\ud83d"}', '{"key": ' + "9" * 5000 + "}",
    ],
    ids=lambda line: line[:20],
)  # fmt: skip
def test_a_line_of_another_form_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, '{"key": "1"}', "", line)

    with pytest.raises(InputError, match=r"quarantine\.jsonl line 3 "):
        read_quarantine(path)


def test_a_pipe_in_its_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "quarantine.jsonl")

    with pytest.raises(InputError, match=r"quarantine\.jsonl is no regular file"):
        read_quarantine(tmp_path / "quarantine.jsonl")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (QuarantineEntry(key="1"), None),
        (QuarantineEntry(key="1", shard="2.tar"), None),
        (QuarantineEntry(key="1", shard="2.tar", data_set="b"), None),
        (QuarantineEntry(key="1", data_set="c"), "the run's data sets are a, b"),
        (QuarantineEntry(key="1", shard="0.tar", data_set="c"), "the run's data sets are a, b"),
        (QuarantineEntry(key="1", shard="0.tar", data_set="b"), "there is no such shard in b"),
        (QuarantineEntry(key="1", shard="3.tar"), "there is no such shard in a, b"),
    ],
)
def test_a_line_that_names_no_data_set_or_shard_is_found(
    entry: QuarantineEntry, reason: str | None
) -> None:
    found = Quarantine(entries=(entry,)).not_in(SHARDS)

    assert found == ({} if reason is None else {entry: reason})
