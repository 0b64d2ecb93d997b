"""A line of `captions.jsonl` gives a pair or the reason of its rejection."""

import json
import os
from pathlib import Path

import pytest

from data_pipelines.captions import clean_caption
from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.captions_file import (
    MAX_LINE_BYTES,
    RawPair,
    Rejection,
    count_lines,
    read_pairs,
)


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
    return list(read_pairs(source, max_caption_characters=20))


def test_a_pair_keeps_further_keys(source: Path) -> None:
    write_lines(source, '{"image": "images/a.png", "caption": " 红\\n辣椒 ", "keywords": ["辣"]}')

    assert read(source) == [
        RawPair(
            line=1,
            key="00000000",
            image=source / "images" / "a.png",
            caption="红 辣椒",
            record={"image": "images/a.png", "caption": "红 辣椒", "keywords": ["辣"]},
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
        pytest.param('{"caption": "x"}', Reason.MISSING_FIELD, id="no image"),
        pytest.param('{"image": "images/a.png"}', Reason.MISSING_FIELD, id="no caption"),
        pytest.param(
            '{"image": "images/a.png", "caption": null}', Reason.MISSING_FIELD, id="caption null"
        ),
        pytest.param(
            '{"image": "images/a.png", "caption": 7}', Reason.MISSING_FIELD, id="caption a number"
        ),
        pytest.param(
            '{"image": "images/a.png", "caption": ""}', Reason.EMPTY_CAPTION, id="empty caption"
        ),
        pytest.param(
            '{"image": "images/a.png", "caption": " \\u200b\\n\\u0000"}',
            Reason.EMPTY_CAPTION,
            id="nothing visible in the caption",
        ),
        pytest.param(
            json.dumps({"image": "images/a.png", "caption": "x" * 21}),
            Reason.CAPTION_TOO_LONG,
            id="one character too many",
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
    assert (rejection.line, rejection.reason) == (1, reason)
    assert len(rejection.detail) < 1000
    assert isinstance(pair, RawPair)
    assert (pair.line, pair.caption) == (2, "好")


def test_a_byte_order_mark_is_no_part_of_the_first_line(source: Path) -> None:
    write_lines(source, b"\xef\xbb\xbf" + '{"image": "images/a.png", "caption": "红"}'.encode())

    (pair,) = read(source)

    assert isinstance(pair, RawPair)
    assert (pair.line, pair.caption) == (1, "红")


def test_blank_lines_give_nothing_and_keep_their_numbers(source: Path) -> None:
    write_lines(
        source,
        "",
        '{"image": "images/a.png", "caption": "x"}',
        " \t\r",
        '{"image": "images/b.png", "caption": "y"}',
        "",
    )

    assert [line.line for line in read(source)] == [2, 4]
    assert count_lines(source) == 2


def test_a_separator_within_a_caption_ends_no_line(source: Path) -> None:
    write_lines(source, '{"image": "images/a.png", "caption": "红\u2028绿\u0085蓝"}')

    (pair,) = read(source)

    assert isinstance(pair, RawPair)
    assert pair.caption == "红 绿 蓝"


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


def test_the_same_image_under_two_names_is_a_duplicate(source: Path) -> None:
    write_lines(
        source,
        '{"image": "images/a.png", "caption": "x"}',
        '{"image": "./images//a.png", "caption": "y"}',
    )

    pair, rejection = read(source)

    assert isinstance(pair, RawPair)
    assert rejection == Rejection(
        line=2,
        reason=Reason.DUPLICATE_KEY,
        detail="'./images//a.png' is the image of line 1",
    )


def test_a_rejected_line_does_not_take_the_image(source: Path) -> None:
    write_lines(
        source,
        '{"image": "images/a.png", "caption": ""}',
        '{"image": "images/a.png", "caption": "y"}',
    )

    assert isinstance(read(source)[1], RawPair)


def test_a_longest_line_counts_once(source: Path) -> None:
    write_lines(source, "1" * (3 * MAX_LINE_BYTES), "2")

    assert count_lines(source) == 2


def test_a_folder_without_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no captions\.jsonl: name a folder"):
        count_lines(tmp_path)


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        pytest.param("a\tb\r\nc", "a b c", id="white space becomes one space"),
        pytest.param("a \u200b b", "a b", id="zero-width space between spaces"),
        pytest.param("\u202eabc\u202c", "abc", id="direction overrides are removed"),
        pytest.param("a\x00\x1b[31mb", "a[31mb", id="control characters are removed"),
        pytest.param("\u3000红\u3000", "红", id="ideographic space"),
        pytest.param("👩\u200d🚀", "👩\u200d🚀", id="a joiner within an emoji stays"),
        pytest.param("红，(辣)：椒", "红，(辣)：椒", id="marks stay"),
        pytest.param("a\u2581b", "a b", id="the space of SentencePiece"),
        pytest.param("a\u2585b", "a\u2585b", id="another block"),
    ],
)
def test_captions_are_cleaned(caption: str, cleaned: str) -> None:
    assert clean_caption(caption, max_characters=100) == cleaned


def test_a_caption_of_joiners_alone_is_empty() -> None:
    with pytest.raises(RejectedError):
        clean_caption("\u200d \u200c", max_characters=100)
