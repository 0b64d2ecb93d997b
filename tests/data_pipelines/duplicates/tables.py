"""Small tables of inspected rows."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb

from data_pipelines.duplicates.content_hashes import sha256_of_text
from data_pipelines.duplicates.find import find_duplicates
from data_pipelines.metadata import COLUMNS, write_rows
from ernie_vilg.config.curation import DeduplicationConfig

Found = dict[tuple[int, int], dict[str, Any]]


def row(part: int, number: int, **values: Any) -> dict[str, Any]:
    """Return a row with its own picture, pixels, hash and caption, unless told otherwise."""
    name = f"{part}-{number}"
    digest = hashlib.sha256(name.encode()).digest()
    words = [int.from_bytes(digest[8 * word : 8 * word + 8]) for word in range(4)]
    caption = values.get("caption", f"caption {name} {digest.hex()}")
    given = {
        "part": part,
        "row": number,
        "source": "web",
        "picture_id": name,
        "caption": caption,
        "width": 10,
        "height": 10,
        "pixels_sha256": digest.hex(),
        "text_sha256": sha256_of_text(caption),
        "pdq_quality": 100,
        "pdq": words,
        **values,
    }
    words = given.pop("pdq")
    return {**given, **{f"pdq_{place}": word for place, word in enumerate(words)}}


def hash_of(values: Mapping[str, Any]) -> list[int]:
    """Return the PDQ hash of a row."""
    return [values[f"pdq_{place}"] for place in range(4)]


def flipped(words: Iterable[int], bits: Iterable[int]) -> list[int]:
    """Return a hash with some bits flipped; bit 0 is the most significant one."""
    found = list(words)
    for bit in bits:
        found[bit // 64] ^= 1 << (63 - bit % 64)
    return found


def write_parts(folder: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write the rows to a file per part; return the pattern of the files."""
    by_part: dict[int, list[Mapping[str, Any]]] = {}
    for one in rows:
        by_part.setdefault(one["part"], []).append(one)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part, of_part in by_part.items():
        write_rows(folder / f"part-{part:05d}.parquet", of_part, COLUMNS)
    return f"{folder}/part-*.parquet"


def find(
    folder: Path, rows: Iterable[Mapping[str, Any]], *, threads: int = 1, **settings: Any
) -> tuple[Found, Mapping[str, int]]:
    """Return the relations that are found between rows by (part, row), and the counts."""
    files = write_parts(folder / "rows", rows)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    output = folder / "relations.parquet"
    config = DeduplicationConfig(**settings)
    counts = find_duplicates(files, config, output=output, folder=scratch, threads=threads)
    return read(output), counts


def read(path: Path) -> Found:
    """Return relations by (part, row)."""
    query = duckdb.sql(f"select * from read_parquet('{path}')")
    found = [dict(zip(query.columns, values, strict=True)) for values in query.fetchall()]
    assert [(one["part"], one["row"]) for one in found] == sorted(
        (one["part"], one["row"]) for one in found
    )
    return {(one["part"], one["row"]): one for one in found}


def reasons(found: Found) -> dict[tuple[int, int], tuple[str, tuple[int, int]]]:
    """Return the reason of every rejected row, and the row kept instead."""
    return {
        place: (one["reason"], (one["of_part"], one["of_row"]))
        for place, one in found.items()
        if one["reason"] is not None
    }
