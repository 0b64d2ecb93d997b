"""Lines reach the file in order, even if the disk is full in between."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.storage.jsonl import (
    LineFile,
    append_records,
    line_of,
    read_lines,
    read_raw_lines,
    read_records,
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is refused here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_lines_are_added_to_those_of_before(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('{"one": 1}\n')

    file = LineFile(path)
    file.append({"zwei": "二"})
    file.close()

    assert path.read_text(encoding="utf-8") == '{"one": 1}\n{"zwei": "二"}\n'


def test_what_a_full_disk_does_not_take_follows_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(40 << 10))
    file = LineFile(small_disk / "lines")
    records = [{"number": number, "text": "x" * 1000} for number in range(60)]

    for record in records[:40]:  # 40 KiB, where there is room for 24
        file.append(record)
    written = (small_disk / "lines").read_text()
    ballast.unlink()
    for record in records[40:]:
        file.append(record)
    file.close()

    assert len(written) < 25 << 10
    lines = (small_disk / "lines").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once, not per line
    assert "No space left on device" in caplog.text


UNUSABLE = {
    "null": b"null",
    "a number": b"5",
    "a list": b"[1]",
    "deep": b"[" * 100_000,
    "a long number": b'{"step": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"caption": "\xc4\xe3"}',
    "half a surrogate pair": b'{"caption": "\\ud83d"}',
    "cut short": b'{"step": 1',
}


def take(record: dict[str, Any], name: str) -> dict[str, Any]:
    return record


@pytest.mark.parametrize("bad", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_line_is_counted_and_said_and_costs_no_other(
    tmp_path: Path, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n\n' + bad + b"\n" + bad + b'\n{"a": 2}\n')

    assert read_records(path, take) == ([{"a": 1}, {"a": 2}], 2)
    (warning,) = caplog.messages
    assert "2 line(s) hold nothing usable" in warning
    assert f"{path} line 3 " in warning


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    records = [{"caption": f"one{mark}two"} for mark in "\u2028\u2029\x85\x0b\x0c\x1c\r"]
    append_records(path, records)

    assert read_records(path, take) == (records, 0)


def test_a_byte_order_mark_and_windows_ends_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')

    assert read_records(path, take) == ([{"a": 1}, {"a": 2}], 0)


@pytest.mark.parametrize("writer", ["LineFile", "append_records"])
def test_a_torn_last_line_is_ended_before_the_next(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "lines"
    path.write_text('{"a": 1}\n{"a": ')

    if writer == "LineFile":
        LineFile(path).append({"a": 3})
    else:
        append_records(path, [{"a": 3}])

    assert read_records(path, take) == ([{"a": 1}, {"a": 3}], 1)


def test_what_json_cannot_hold_is_written_as_something_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(line_of({"loss": [float("nan"), 1.0], "file": os.fsdecode(b"a\xc4.png")}))

    assert read_records(path, take) == ([{"loss": [None, 1.0], "file": "a?.png"}], 0)


def test_a_line_that_is_too_long_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x" * 5000 + b'\n{"a": 1}\n')

    long, good = read_lines(path, most_bytes=100)

    assert (long.number, len(long.text), long.record) == (1, 101, None)
    assert (good.number, good.record) == (2, {"a": 1})


@pytest.mark.parametrize("length", [(1 << 20) + shift for shift in (-1, 0, 100, 101, 102)])
def test_what_follows_a_line_of_any_length_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x" * length + b'\n{"a": 1}\n' + b"y" * length + b'\n{"a": 2}')

    lines = list(read_lines(path, most_bytes=100))

    assert [line.record for line in lines] == [None, {"a": 1}, None, {"a": 2}]
    assert [line.is_whole for line in lines] == [True, True, True, False]


def test_a_byte_order_mark_between_joined_files_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n")

    assert [text for _, text, _ in read_raw_lines(path)] == [b"a", b"b"]


def test_a_pipe_hangs_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lines")

    with pytest.raises(InputError, match="lines is no regular file"):
        read_records(tmp_path / "lines", take)


def test_a_disk_that_does_not_take_a_finding_says_so() -> None:
    with pytest.raises(OSError, match="No space left"):
        append_records(Path("/dev/full"), [{"a": 1}])
