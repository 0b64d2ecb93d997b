"""A line of `captions.jsonl` gives a pair or the reason of its rejection."""

import json
import os
from pathlib import Path

import pytest

from data_pipelines.rejections import Reason, Rejection
from data_pipelines.sources.captions_file import read_captions_file
from data_pipelines.sources.json_lines import MAX_LINE_BYTES
from data_pipelines.sources.pictures import LocalPicture
from data_pipelines.sources.rows import RawPair


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"a")
    (folder / "images" / "b.png").write_bytes(b"b")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return folder


def write_lines(source: Path, *lines: str | bytes) -> None:
    encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
    (source / "captions.jsonl").write_bytes(b"".join(line + b"\n" for line in encoded))


def read(source: Path) -> list[RawPair | Rejection]:
    return list(read_captions_file(source))


def test_a_pair_keeps_further_keys(source: Path) -> None:
    write_lines(source, '{"image": "./images/a.png", "caption": " 红", "keywords": ["辣"]}')

    assert read(source) == [
        RawPair(
            row=0,
            place="captions.jsonl line 1",
            picture_id="images/a.png",
            picture=LocalPicture(path=str(source / "images" / "a.png")),
            caption=" 红",
            record={"image": "./images/a.png", "caption": " 红", "keywords": ["辣"]},
        )
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param("{", Reason.NOT_JSON, id="broken JSON"),
        pytest.param('["images/a.png", "x"]', Reason.NOT_JSON, id="JSON, but no object"),
        pytest.param(b'{"image": "\xff"}', Reason.NOT_JSON, id="not UTF-8"),
        pytest.param('{"score": NaN}', Reason.NOT_JSON, id="NaN is not JSON"),
        pytest.param(
            '{"image": "images/a.png", "caption": "x", "score": 1e999}',
            Reason.NOT_JSON,
            id="a number beyond the largest",
        ),
        pytest.param("[" * 100_000, Reason.NOT_JSON, id="nested beyond any parser's depth"),
        pytest.param("1" * (MAX_LINE_BYTES + 7), Reason.NOT_JSON, id="longer than a line may be"),
        pytest.param(
            '{"image": "images/a.png", "caption": "\\ud800"}',
            Reason.NOT_JSON,
            id="half a surrogate pair",
        ),
        pytest.param(
            '{"image": "images/a.png", "caption": []}', Reason.MISSING_FIELD, id="no captions"
        ),
        pytest.param('{"caption": "x"}', Reason.MISSING_FIELD, id="no image"),
        pytest.param('{"image": "images/a.png"}', Reason.MISSING_FIELD, id="no caption"),
        pytest.param(
            '{"image": "images/a.png", "caption": null}', Reason.MISSING_FIELD, id="caption null"
        ),
        pytest.param(
            '{"image": "images/a.png", "caption": 7}', Reason.MISSING_FIELD, id="caption a number"
        ),
        pytest.param(
            '{"image": "../secret.png", "caption": "x"}', Reason.UNSAFE_PATH, id="out by .."
        ),
        pytest.param(
            '{"image": "images/../../secret.png", "caption": "x"}',
            Reason.UNSAFE_PATH,
            id="out by .. in the middle",
        ),
        pytest.param('{"image": "/etc/passwd", "caption": "x"}', Reason.UNSAFE_PATH, id="absolute"),
        pytest.param(
            '{"image": "a\\u0000.png", "caption": "x"}', Reason.UNSAFE_PATH, id="NUL in the path"
        ),
        pytest.param('{"image": "", "caption": "x"}', Reason.UNSAFE_PATH, id="empty path"),
        pytest.param(
            '{"image": "images/c.png", "caption": "x"}', Reason.MISSING_IMAGE, id="no file"
        ),
        pytest.param('{"image": "images", "caption": "x"}', Reason.MISSING_IMAGE, id="a folder"),
        pytest.param(
            json.dumps({"image": "i" * 5000, "caption": "x"}),
            Reason.MISSING_IMAGE,
            id="longer than a file name may be",
        ),
    ],
)
def test_a_bad_line_is_rejected_and_the_next_one_read(
    source: Path, line: str | bytes, reason: Reason
) -> None:
    write_lines(source, line, '{"image": "images/b.png", "caption": "好"}')

    rejection, pair = read(source)

    assert isinstance(rejection, Rejection)
    assert (rejection.row, rejection.place) == (0, "captions.jsonl line 1")
    assert rejection.reason == reason
    assert len(rejection.detail) < 1000
    assert isinstance(pair, RawPair)
    assert (pair.row, pair.place, pair.caption) == (1, "captions.jsonl line 2", "好")


def test_a_byte_order_mark_is_no_part_of_the_first_line(source: Path) -> None:
    write_lines(source, b"\xef\xbb\xbf" + '{"image": "images/a.png", "caption": "红"}'.encode())

    (pair,) = read(source)

    assert isinstance(pair, RawPair)
    assert (pair.row, pair.caption) == (0, "红")


def test_blank_lines_give_nothing_and_keep_their_numbers(source: Path) -> None:
    write_lines(
        source,
        "",
        '{"image": "images/a.png", "caption": "x"}',
        " \t\r",
        '{"image": "images/b.png", "caption": "y"}',
        "",
    )

    rows = read(source)
    assert [row.place for row in rows] == ["captions.jsonl line 2", "captions.jsonl line 4"]
    assert [row.row for row in rows] == [0, 1]


def test_a_separator_within_a_caption_ends_no_line(source: Path) -> None:
    write_lines(source, '{"image": "images/a.png", "caption": "红\u2028绿\u0085蓝"}')

    (pair,) = read(source)

    assert isinstance(pair, RawPair)
    assert pair.caption == "红\u2028绿\u0085蓝"


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (
            '{"image": "images/a.png", "caption": null}',
            "'caption' is null where a string is required",
        ),
        ('{"image": "images/a.png"}', "there is no 'caption'"),
    ],
    ids=["null", "missing"],
)
def test_what_stands_in_a_captions_place_is_named(source: Path, line: str, detail: str) -> None:
    write_lines(source, line)

    (rejection,) = read(source)

    assert isinstance(rejection, Rejection)
    assert rejection.detail == detail


def test_bytes_that_are_no_text_are_named_with_file_and_line(source: Path) -> None:
    write_lines(source, b'{"image": "\xff"}')

    (rejection,) = read(source)

    assert isinstance(rejection, Rejection)
    assert f"{source}/captions.jsonl line 1 is not valid JSON" in rejection.detail
    assert "byte 11 is not UTF-8" in rejection.detail


def test_a_link_out_of_the_source_is_refused(source: Path) -> None:
    (source / "images" / "link.png").symlink_to(source.parent / "secret.png")
    write_lines(source, '{"image": "images/link.png", "caption": "x"}')

    (rejection,) = read(source)

    assert isinstance(rejection, Rejection)
    assert rejection.reason == Reason.UNSAFE_PATH


def test_a_pipe_is_not_waited_for(source: Path) -> None:
    os.mkfifo(source / "images" / "pipe.png")
    write_lines(source, '{"image": "images/pipe.png", "caption": "x"}')

    (rejection,) = read(source)

    assert isinstance(rejection, Rejection)
    assert rejection.reason == Reason.MISSING_IMAGE


def test_captions_of_one_picture_are_rows_of_the_same_picture(source: Path) -> None:
    write_lines(
        source,
        '{"image": "images/a.png", "caption": ["x", "y"]}',
        '{"image": "./images//a.png", "caption": "z"}',
    )

    rows = read(source)

    assert [row.picture_id for row in rows if isinstance(row, RawPair)] == ["images/a.png"] * 3
    assert [row.caption for row in rows if isinstance(row, RawPair)] == ["x", "y", "z"]
    assert [row.record["caption"] for row in rows if isinstance(row, RawPair)] == ["x", "y", "z"]


def test_the_same_picture_with_the_same_caption_is_a_duplicate(source: Path) -> None:
    write_lines(
        source,
        '{"image": "images/a.png", "caption": "x"}',
        '{"image": "./images//a.png", "caption": ["x", "y"]}',
    )

    first, again, other = read(source)

    assert isinstance(first, RawPair)
    assert again == Rejection(
        row=1,
        place="captions.jsonl line 2",
        reason=Reason.DUPLICATE_KEY,
        detail="'images/a.png' has the same caption at captions.jsonl line 1",
    )
    assert isinstance(other, RawPair)


def test_each_caption_of_a_missing_picture_is_a_row(source: Path) -> None:
    write_lines(source, '{"image": "images/c.png", "caption": ["x", 7, "y"]}')

    rows = read(source)

    reasons = [row.reason for row in rows if isinstance(row, Rejection)]
    assert reasons == [Reason.MISSING_IMAGE, Reason.MISSING_FIELD, Reason.MISSING_IMAGE]


def test_a_longest_line_counts_once(source: Path) -> None:
    write_lines(source, "1" * (3 * MAX_LINE_BYTES), "2")

    assert len(read(source)) == 2


def test_a_folder_without_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no captions\.jsonl: name a folder"):
        read_captions_file(tmp_path)
