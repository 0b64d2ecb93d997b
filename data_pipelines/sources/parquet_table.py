"""Reader of Parquet files, a range of rows at a time, through DuckDB.

The picture's column holds a path, the file itself, or both as Hugging Face writes them: a struct of
`bytes` and `path`. Columns of other binary data are not read.
"""

import glob
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from data_pipelines.metadata import database, parquet, quoted
from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.listed import Content, EmbeddedPicture
from data_pipelines.sources.rows import Part
from data_pipelines.sources.text_parts import identity_of, is_listing, read_listing, write_listing
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_json

_MEMORY = "1GB"
_ROWS_AT_ONCE = 4096
_PICTURES_AT_ONCE = 128
"""Rows read at once where the table holds the pictures themselves."""


@dataclass(frozen=True, kw_only=True)
class ParquetTable:
    """The rows of some Parquet files."""

    paths: tuple[Path, ...]
    """The files, in order."""
    listing: Path
    """File in the work folder that keeps the parts."""
    rows_per_part: int
    """Rows of each part but the last of a file."""
    image_key: str
    """Column of the picture."""
    caption_key: str
    """Column of the caption."""

    def fingerprint(self) -> str:
        """Return a hash of the sizes and times of the files."""
        return sha256_of_json([identity_of(path) for path in self.paths])

    def parts(self, source: str) -> Iterator[Part]:
        """Yield the parts in order.

        Raises:
            InputError: a file is damaged, or lacks a column.
        """
        head = {"files": self.fingerprint(), "rows_per_part": self.rows_per_part}
        head["columns"] = f"{self.image_key} {self.caption_key}"
        if not is_listing(self.listing, head):
            write_listing(self.listing, head, self._find_parts())
        for part in read_listing(self.listing):
            yield Part(source=source, **part)

    def _find_parts(self) -> Iterator[dict[str, Any]]:
        first_row = 0
        is_known = True  # a list of captions is several rows
        for path in self.paths:
            columns = columns_of(path)
            for key, setting in ((self.image_key, "image_key"), (self.caption_key, "caption_key")):
                check_column(key, setting, list(columns), path.name)
            num_rows = _num_rows(path)
            is_known = is_known and not columns[self.caption_key].endswith("]")
            for start in range(0, num_rows, self.rows_per_part):
                end = min(start + self.rows_per_part, num_rows)
                yield {
                    "file": path.name,
                    "start": start,
                    "end": end,
                    "first_row": first_row + start if is_known else None,
                    "rows": end - start if is_known else None,
                }
            first_row += num_rows

    def of_part(self, part: Part) -> "ParquetTable":
        """Return the table with one file."""
        return replace(self, paths=tuple(path for path in self.paths if path.name == part.file))

    def records(self, part: Part) -> Iterator[tuple[str, Content]]:
        """Yield place and content of every row of a part; rows that are damaged are rejected."""
        (path,) = self.of_part(part).paths
        assert part.end is not None
        columns = columns_of(path)
        at_once = _PICTURES_AT_ONCE if "BLOB" in columns[self.image_key] else _ROWS_AT_ONCE
        read = [name for name, kind in columns.items() if name == self.image_key or kind != "BLOB"]
        for start in range(part.start, part.end, at_once):
            end = min(start + at_once, part.end)
            places = [f"{path.name} row {row + 1}" for row in range(start, end)]
            yield from zip(places, self._contents(path, read, start, end), strict=True)

    def _contents(
        self, path: Path, columns: Sequence[str], start: int, end: int
    ) -> Iterator[Content]:
        try:
            rows = _read(path, columns, start, end)
        except duckdb.OutOfMemoryException:  # large pictures are no damage
            if end - start == 1:
                raise
            middle = (start + end) // 2
            yield from self._contents(path, columns, start, middle)
            yield from self._contents(path, columns, middle, end)
            return
        except duckdb.Error as error:
            detail = f"{path.name} cannot be read: {error!s:.200}"
            yield from [RejectedError(Reason.DAMAGED_SHARD, detail)] * (end - start)
            return
        for number, row in enumerate(rows, start):
            content = dict(zip(columns, row, strict=True))
            picture = _embedded(content[self.image_key], f"{path.name} row {number + 1}")
            record = {name: _json_value(value) for name, value in content.items()}
            if picture is not None:
                record[self.image_key] = picture
            yield record


def columns_of(path: Path) -> dict[str, str]:
    """Return the columns of a Parquet file with their types.

    Raises:
        InputError: it is no Parquet file, or damaged.
    """
    return {
        name: kind for name, kind, *_ in _query(path, f"describe select * from {parquet(path)}")
    }


def check_column(key: str, setting: str, columns: Sequence[str], file: str) -> None:
    """Refuse a column that a table does not have.

    Raises:
        InputError: there is no such column.
    """
    if key not in columns:
        raise InputError(
            f"{setting}={key}: {file} has no such column, only {', '.join(columns)}: set {setting} "
            "to one of them"
        )


def _num_rows(path: Path) -> int:
    name = quoted(glob.escape(str(path)))
    ((count,),) = _query(path, f"select num_rows from parquet_file_metadata({name})")
    return int(count)


def _query(path: Path, query: str) -> list[tuple[Any, ...]]:
    try:
        with database(memory=_MEMORY) as connection:
            rows: list[tuple[Any, ...]] = connection.execute(query).fetchall()
    except duckdb.Error as error:
        raise InputError(
            f"{path} cannot be read as Parquet ({error!s:.300}): copy it again, or remove it"
        ) from error
    return rows


def _read(path: Path, columns: Sequence[str], start: int, end: int) -> list[tuple[Any, ...]]:
    selected = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    table = parquet(path).removesuffix(")") + ", file_row_number=true)"
    with database(memory=_MEMORY) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(
            f"select {selected} from {table} where file_row_number >= {start} "
            f"and file_row_number < {end} order by file_row_number"
        ).fetchall()
    if len(rows) != end - start:
        raise duckdb.Error(f"{len(rows)} rows where {end - start} were expected")
    return rows


def _embedded(value: Any, place: str) -> EmbeddedPicture | None:
    """Return the picture that a value holds; None where it is a name."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return EmbeddedPicture(place, value["bytes"])
    return EmbeddedPicture(place, value) if isinstance(value, bytes) else None


def _json_value(value: Any) -> Any:
    """Return a value of a table as JSON: NaN, which a table has for missing numbers, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return None
    return str(value)
