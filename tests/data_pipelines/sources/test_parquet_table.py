"""Rows of Parquet files, whole and damaged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from data_pipelines.metadata import write_rows
from data_pipelines.rejections import Reason
from data_pipelines.sources import parquet_table
from data_pipelines.sources.rows import Part, RawPair
from tests.data_pipelines.layouts import write_parquet
from tests.data_pipelines.sources.reading import (
    captions_of,
    open_source,
    pairs_of,
    read,
    reasons_of,
)


def write(path: Path, count: int, *, columns: tuple[str, str] = ("image", "caption")) -> None:
    (path.parent / "a.png").write_bytes(b"a")
    image, caption = columns
    values = {image: ["a.png"] * count, caption: [f"{path.stem} {n}" for n in range(count)]}
    write_parquet(path, values, ["varchar", "varchar"])


def test_parts_have_their_rows_and_say_how_many(tmp_path: Path) -> None:
    write(tmp_path / "a[1].parquet", 5)
    write(tmp_path / "b.parquet", 2)

    source = open_source(tmp_path, tmp_path / "work", rows_per_part=3)
    parts = list(source.parts())

    assert [(part.file, part.first_row, part.rows) for part in parts] == [
        ("a[1].parquet", 0, 3),
        ("a[1].parquet", 3, 2),
        ("b.parquet", 5, 2),
    ]
    assert captions_of(list(source.rows(parts[1]))) == ["a[1] 3", "a[1] 4"]
    assert [row.place for row in source.rows(parts[1])] == [
        "a[1].parquet row 4",
        "a[1].parquet row 5",
    ]


def test_values_that_are_no_captions_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    path = tmp_path / "pairs.parquet"
    captions = [["x", "y"], None, [], ["z", None]]
    columns = {"image": ["a.png"] * 4, "caption": captions, "score": [0.5, 1, 2, float("nan")]}
    write_parquet(path, columns, ["varchar", "varchar[]", "float"])

    rows = read(path, tmp_path / "work")

    assert captions_of(rows) == ["x", "y", "z"]
    assert reasons_of(rows) == {Reason.MISSING_FIELD: 3}
    records = [row.record for row in rows if isinstance(row, RawPair)]
    assert records[0] == {"image": "a.png", "caption": "x", "score": 0.5}
    assert records[2] == {"image": "a.png", "caption": "z", "score": None}


def test_numbers_in_the_place_of_captions_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_parquet(path, {"image": ["a.png"], "caption": [7]}, ["varchar", "integer"])

    rows = read(path, tmp_path / "work")

    assert reasons_of(rows) == {Reason.MISSING_FIELD: 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"none of the usual columns \(image, .*only picture, text: set image_key"),
        ({"image_key": "imgae"}, r"image_key=imgae: a\.parquet has no such column"),
        ({"image_key": "picture", "caption_key": "x"}, "caption_key=x: a.parquet has no such"),
    ],
)
def test_a_wrong_column_is_refused_with_those_there_are(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    write(tmp_path / "a.parquet", 1, columns=("picture", "text"))

    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, tmp_path / "work", **settings)


def test_a_later_file_without_the_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 1)
    write(tmp_path / "b.parquet", 1, columns=("picture", "caption"))
    source = open_source(tmp_path, tmp_path / "work")

    with pytest.raises(ValueError, match=r"image_key=image: b\.parquet has no such column"):
        list(source.parts())


def test_a_file_without_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, 100)
    path.write_bytes(path.read_bytes()[:-50])

    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        open_source(path, tmp_path / "work")


def test_damaged_rows_are_counted_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    picture = {"bytes": b"picture" * 999, "path": "a.png"}
    columns = {"image": [picture] * 300, "text": [f"caption {n}" for n in range(300)]}
    write_parquet(path, columns, ["struct(bytes blob, path varchar)", "varchar"])
    whole = read(path, tmp_path / "whole")
    content = bytearray(path.read_bytes())
    content[8:40] = bytes(32)  # the beginning of the first page
    path.write_bytes(content)

    rows = read(path, tmp_path / "work")

    assert pairs_of(whole)[0] == (picture["bytes"], "caption 0")
    assert len(rows) == len(whole) == 300
    assert set(reasons_of(rows)) == {Reason.DAMAGED_SHARD}


def test_rows_too_large_to_be_read_at_once_are_read_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pairs.parquet"
    rows = [{"image": f"{number}.png", "caption": f"{number}"} for number in range(7)]
    write_rows(path, rows, {"image": "VARCHAR", "caption": "VARCHAR"})
    read_some = parquet_table._read

    def read_few(path: Path, columns: Sequence[str], start: int, end: int) -> list[tuple[Any, ...]]:
        if end - start > 2:
            raise duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate data")
        return read_some(path, columns, start, end)

    monkeypatch.setattr(parquet_table, "_read", read_few)
    table = parquet_table.ParquetTable(
        paths=(path,), listing=tmp_path / "parts", rows_per_part=10, image_key="image",
        caption_key="caption",
    )  # fmt: skip
    part = Part(source="web", file="pairs.parquet", start=0, end=7)

    assert [content for _, content in table.records(part)] == rows
