"""A record of a csv is a row or is rejected, and no fault hides the records after it."""

import os
import tracemalloc
from pathlib import Path

import pytest

from data_pipelines.rejections import Reason, Rejection
from data_pipelines.sources.csv_table import MAX_RECORD_BYTES
from tests.data_pipelines.sources.reading import captions_of, open_source, read, reasons_of

LONG = b"z" * 10_000_000


def table(tmp_path: Path, *lines: bytes, name: str = "pairs.csv") -> Path:
    for image in "abc":
        (tmp_path / f"{image}.png").write_bytes(image.encode())
    (tmp_path / name).write_bytes(b"".join(line + b"\n" for line in lines))
    return tmp_path / name


@pytest.mark.parametrize("rows_per_part", [1, 2, 100])
@pytest.mark.parametrize(
    ("lines", "num_rejected"),
    [
        pytest.param([b"a.png,x,y"], 1, id="a field too many"),
        pytest.param([b"a.png"], 1, id="a field too few"),
        pytest.param([b"a.png,\xff"], 1, id="not UTF-8"),
        pytest.param([b"a.png,x\0y"], 1, id="NUL"),
        pytest.param([b"a.png," + LONG], 1, id="10 MB"),
        pytest.param([b'a.png,"' + LONG + b'"'], 1, id="10 MB in quotes"),
        pytest.param([b'a.png,"x"y'], 1, id="text after a quoted field"),
        pytest.param([b'a.png,"x\ny\xff"'], 1, id="not UTF-8 in the second line of a field"),
        pytest.param([b'a.png,"never closed'], 1, id="a quote without an end"),
    ],
)
def test_a_bad_record_is_rejected_and_the_next_one_read(
    tmp_path: Path, lines: list[bytes], num_rejected: int, rows_per_part: int
) -> None:
    path = table(tmp_path, b"image,caption", b"b.png,before", *lines, b"c.png,after")

    rows = read(path, tmp_path / "work", rows_per_part=rows_per_part)

    assert captions_of(rows) == ["before", "after"]
    assert reasons_of(rows) == {Reason.NOT_A_ROW: num_rejected}
    assert [row.place for row in rows if isinstance(row, Rejection)] == ["pairs.csv line 3"]


def test_a_quoted_field_keeps_its_line_breaks_across_parts(tmp_path: Path) -> None:
    records = [f'a.png,"line {number}\nof\r\n""two"""'.encode() for number in range(5)]
    path = table(tmp_path, b"\xef\xbb\xbfimage,caption", b"", *records)
    source = open_source(path, tmp_path / "work", rows_per_part=2)

    parts = list(source.parts())
    rows = [list(source.rows(part)) for part in parts]

    assert [len(some) for some in rows] == [2, 2, 1]
    expected = [f'line {number}\nof\r\n"two"' for number in range(5)]
    assert [caption for some in rows for caption in captions_of(some)] == expected
    assert [some[0].place for some in rows] == [
        "pairs.csv line 3",
        "pairs.csv line 9",
        "pairs.csv line 15",
    ]


def test_memory_is_bounded_by_the_longest_record(tmp_path: Path) -> None:
    path = table(tmp_path, b"image,caption", *[b"a.png," + LONG] * 3)

    tracemalloc.start()
    rows = read(path, tmp_path / "work")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert reasons_of(rows) == {Reason.NOT_A_ROW: 3}
    assert peak < 8 * MAX_RECORD_BYTES


def test_other_columns_are_kept(tmp_path: Path) -> None:
    path = table(tmp_path, b"n\tpath\ttitle", b"7\ta.png\tx", name="pairs.tsv")

    (row,) = read(path, tmp_path / "work")

    assert not isinstance(row, Rejection)
    assert row.record == {"n": "7", "path": "a.png", "title": "x"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "is empty"),
        (b"image,image", "each by another name"),
        (b"\xff\xfei\0m\0", "is UTF-16: save it as UTF-8"),
        (b"SAMPLE_ID,URL,TEXT", "URLs are downloaded with img2dataset first"),
        (b"a cat,http://example.org/1.jpg", "must name the columns, and holds a URL"),
        (b"a,b", r"pairs\.csv has none of the usual columns .* only a, b: set image_key"),
    ],
)
def test_a_header_without_the_columns_is_refused(
    tmp_path: Path, header: bytes, message: str
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(header)

    with pytest.raises(ValueError, match=message):
        open_source(path, tmp_path / "work")


def test_parts_are_found_once(tmp_path: Path) -> None:
    path = table(tmp_path, b"image,caption", b"a.png,x", b"b.png,y")
    source = open_source(path, tmp_path / "work", rows_per_part=1)
    first = list(source.parts())
    listing = tmp_path / "work" / "000" / "parts.jsonl"
    listing.write_bytes(listing.read_bytes().replace(b'"line": 3', b'"line": 30'))

    again = list(source.parts())
    path.write_bytes(path.read_bytes() + b"c.png,z\n")
    changed = list(source.parts())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a.png,x", b"\n\n\n,x,y"))
    os.utime(path, ns=(0, 1))
    of_same_size = list(source.parts())

    assert [part.line for part in first] == [1, 3]
    assert [part.line for part in again] == [1, 30]
    assert [part.line for part in changed] == [1, 3, 4]
    assert len(content) == path.stat().st_size
    assert [part.line for part in of_same_size] == [1, 6, 7]


def test_semicolons_of_spreadsheets_separate_fields(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = table(tmp_path, b"\xef\xbb\xbfimage;caption\r", b'a.png;"one, two; three"\r')

    (row,) = read(path, tmp_path / "work")

    assert not isinstance(row, Rejection)
    assert row.caption == "one, two; three"
    assert "semicolons and no comma" in caplog.text
