"""JSON of any content is read, or refused by name; nothing else happens."""

import os
from pathlib import Path

import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import MOST_DEPTH, parse_json, read_json, read_object

BAD = {
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * 500 + b"]" * 500,
    "a long number": b'{"step": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"caption": "\xc4\xe3"}',
    "half a surrogate pair": b'{"caption": "\\ud83d"}',
    "cut short": b'{"step": 1',
    "empty": b"",
    "zeros": bytes(64),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_json_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"run\.json is not valid JSON"):
        read_json(path)


@pytest.mark.parametrize("content", [b"null", b"5", b"[1]", b'"text"', b"true"])
def test_another_value_than_an_object_is_refused_and_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"run\.json holds .* where an object belongs"):
        read_object(path)


def test_a_pipe_in_the_place_of_a_file_hangs_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")

    with pytest.raises(InputError, match=r"run\.json is no regular file"):
        read_json(tmp_path / "run.json")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no regular file"):
        read_json(tmp_path)


def test_a_file_that_is_too_long_is_refused_before_its_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file, larger than memory

    with pytest.raises(InputError, match="more than 67,108,864 bytes"):
        read_json(path)


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json(b"\xef\xbb\xbf[1]", "it") == [1]
    assert parse_json("\ufeff[1]", "it") == [1]


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert parse_json(b'"\\ud83d\\ude00"', "it") == "\U0001f600"


def test_the_limit_of_depth_is_exact() -> None:
    parse_json("[" * MOST_DEPTH + "]" * MOST_DEPTH, "it")
    with pytest.raises(InputError, match=f"more than {MOST_DEPTH} nested brackets"):
        parse_json("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "it")
