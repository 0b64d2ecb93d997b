"""Rows of metadata with planted duplicates, and what is found of them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from data_pipelines.metadata import COLUMNS, copy_to_parquet, database, parquet
from data_pipelines.rejections import Reason
from ernie_vilg.storage.files import write_bytes

THRESHOLD = 31
EXACT = 0
"""Distance that marks copies with equal pixels."""
_ROWS_PER_PART = 250_000
_CHARACTERS_OF_CAPTIONS = 24
_CHANGED_CHARACTERS = 2
_HAN, _NUM_HAN = 0x4E00, 2000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Planted copies: their rows, their originals, and the distances."""

    rows: int
    copies: NDArray[np.int64]  # in order
    originals: NDArray[np.int64]
    distances: NDArray[np.int64]  # of the hashes of pictures; EXACT for equal pixels


def plan(rows: int, share: float = 0.01, seed: int = 0) -> Plan:
    """Choose copies: a quarter with equal pixels, the others half at the threshold, half nearer.

    Every copy has an original of its own before it.
    """
    generator = np.random.default_rng(seed)
    number = round(rows * share)
    chosen = generator.choice(rows, size=2 * number, replace=False).reshape(number, 2)
    originals, copies = np.sort(chosen, axis=1).T
    distances = 1 + np.arange(number) % THRESHOLD
    distances[generator.random(number) < 0.5] = THRESHOLD
    distances[generator.random(number) < 0.25] = EXACT
    order = np.argsort(copies)
    return Plan(
        rows=rows, copies=copies[order], originals=originals[order], distances=distances[order]
    )


def write_rows(folder: Path, planned: Plan, *, seed: int = 1) -> None:
    """Write the rows as Parquet files: random hashes, captions of random Chinese characters.

    The caption of a copy is that of its original with its last two characters changed.
    """
    generator = np.random.default_rng(seed)
    hashes = generator.integers(1 << 64, size=(planned.rows, 4), dtype=np.uint64, endpoint=False)
    hashes[planned.copies] = hashes[planned.originals] ^ _flips(generator, planned.distances)
    pixels, texts = np.arange(planned.rows), np.arange(planned.rows)
    is_equal = planned.distances == EXACT
    pixels[planned.copies[is_equal]] = planned.originals[is_equal]
    texts[planned.copies] = planned.originals
    for part in range(math.ceil(planned.rows / _ROWS_PER_PART)):
        rows = slice(part * _ROWS_PER_PART, (part + 1) * _ROWS_PER_PART)
        given: dict[str, NDArray[Any]] = {
            "number": np.arange(planned.rows)[rows],
            "pixels": pixels[rows],
        }
        given.update({f"pdq_{word}": hashes[rows, word].copy() for word in range(4)})
        given["caption"] = _captions(given["number"], texts[rows])
        with database() as connection:
            connection.register("given", given)
            copy_to_parquet(connection, _query(part), folder / f"part-{part:05d}.parquet")
    write_bytes(folder / "complete", b"")


def _flips(generator: np.random.Generator, distances: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return hashes with as many random bits set as asked for, uint64 [n, 4]."""
    flips = np.zeros((len(distances), 4), dtype=np.uint64)
    for start in range(0, len(distances), 10_000):
        block = distances[start : start + 10_000]
        order = np.argsort(generator.random((len(block), 256)), axis=1)
        is_set = np.argsort(order, axis=1) < block[:, None]
        flips[start : start + 10_000] = np.packbits(is_set, axis=1).view(">u8")
    return flips


def _captions(numbers: NDArray[np.int64], texts: NDArray[np.int64]) -> NDArray[np.object_]:
    """Return captions, object [n], that depend on the text, but for the end, on the row."""
    places = np.arange(_CHARACTERS_OF_CAPTIONS, dtype=np.uint64)
    mixed = _mixed(texts.astype(np.uint64)[:, None] * np.uint64(64) + places)
    last = _mixed(numbers.astype(np.uint64)[:, None] * np.uint64(64) + places)
    mixed[:, -_CHANGED_CHARACTERS:] = last[:, -_CHANGED_CHARACTERS:]
    points = (_HAN + mixed % np.uint64(_NUM_HAN)).astype("<u4")
    captions = points.view(f"<U{_CHARACTERS_OF_CAPTIONS}").ravel()
    return captions.astype(object)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _query(part: int) -> str:
    values = {
        "part": str(part),
        "row": f"number - {part * _ROWS_PER_PART}",
        "source": "'planted'",
        "picture_id": "concat('images/', number, '.jpg')",
        "caption": "caption",
        "width": "640",
        "height": "480",
        "pixels_sha256": "sha256(concat('pixels ', pixels))",
        "text_sha256": "sha256(caption)",
        "pdq_quality": "100",
        **{f"pdq_{word}": f"pdq_{word}" for word in range(4)},
    }
    columns = (f"{values.get(name, 'null')}::{kind} as {name}" for name, kind in COLUMNS.items())
    return f"select {', '.join(columns)} from given order by number"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Shares of the planted copies that were found, and rows that were rejected wrongly."""

    exact: float
    at_threshold: float
    nearer: float
    texts: float
    false_exact: int
    false_near: int
    false_texts: int


def compare(relations: Path, planned: Plan) -> Found:
    """Compare what was found with what was planted."""
    found = duckdb.sql(f"""
        select part::bigint * {_ROWS_PER_PART} + row as number,
            of_part::bigint * {_ROWS_PER_PART} + of_row as original, reason
        from {parquet(relations)} where reason is not null
    """).fetchnumpy()
    reason = np.asarray(found["reason"]).astype(str)
    original = np.full(planned.rows, -1)
    original[planned.copies] = planned.originals
    distance = np.full(planned.rows, -1)
    distance[planned.copies] = planned.distances
    number = np.asarray(found["number"])
    is_true = original[number] == np.asarray(found["original"])
    is_exact = distance[number] == EXACT

    def share(kind: Reason, planted: NDArray[np.bool_]) -> float:
        is_found = np.isin(planned.copies, number[is_true & (reason == kind)])
        return float(is_found[planted].mean()) if planted.any() else math.nan

    exact, near = planned.distances == EXACT, planned.distances > EXACT
    at_threshold = planned.distances == THRESHOLD
    return Found(
        exact=share(Reason.DUPLICATE_PICTURE, exact),
        at_threshold=share(Reason.NEAR_DUPLICATE_PICTURE, at_threshold),
        nearer=share(Reason.NEAR_DUPLICATE_PICTURE, near & ~at_threshold),
        texts=share(Reason.NEAR_DUPLICATE_TEXT, planned.distances >= EXACT),
        false_exact=int(((reason == Reason.DUPLICATE_PICTURE) & ~(is_true & is_exact)).sum()),
        false_near=int(((reason == Reason.NEAR_DUPLICATE_PICTURE) & ~is_true).sum()),
        false_texts=int(((reason == Reason.NEAR_DUPLICATE_TEXT) & ~is_true).sum()),
    )
