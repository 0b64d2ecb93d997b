"""Targets of the fuzzer among raw pairs: tables, tar files and lists that other programs write."""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.rejections import Reason, Rejection
from data_pipelines.sources.open import open_sources
from data_pipelines.sources.rows import RawPair
from ernie_vilg.config.shards import BuildShardsConfig
from tests.data_pipelines.layouts import LAYOUTS, write_img2dataset
from tests.fuzz.mutate_bytes import mutate_bytes, mutate_json
from tests.fuzz.mutate_media import mutate_tar
from tests.fuzz.target import Files, Outcome, Target, files_below, require

Rows = list[RawPair | Rejection]

_NUM_PAIRS = 5
_NUM_FAILED = 2
_KEYS = [f"00000{number:04d}" for number in range(_NUM_PAIRS + _NUM_FAILED)]


def _pairs() -> list[dict[str, Any]]:
    captions = ["红辣椒", 'a "quoted", text', "two\nlines", "圆", " "]
    return [{"image": f"{n}.png", "caption": text} for n, text in enumerate(captions)]


def _files(layout: str) -> Callable[[], dict[str, bytes]]:
    def make() -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            source, raw = Path(folder) / "source", Path(folder) / "raw"
            source.mkdir()
            for pair in _pairs():
                (source / pair["image"]).write_bytes(pair["image"].encode() * 99)
            if layout == "img2dataset":
                write_img2dataset(source, _pairs(), raw, failed=_NUM_FAILED)
            else:
                LAYOUTS[layout](source, _pairs(), raw)
            return files_below(raw)

    return make


def _question_files() -> dict[str, bytes]:
    questions = [
        {"image_id": name, "Question": f"{name}？", "Answer": text}
        for name, text in (
            ("0.png", "红"),
            ("1.png", "圆"),
            ("0.png", "two\nlines"),
            ("1.png", "无"),
        )
    ]
    pictures = {name: name.encode() * 99 for name in ("0.png", "1.png")}
    content = {"train": questions, "val": questions[:1]}
    return {**pictures, "FM-CH-QA.json": json.dumps(content, ensure_ascii=False).encode()}


def _rows(folder: Path, file: str, layout: str, *, rows_per_part: int) -> Rows:
    config = BuildShardsConfig(
        source=str(folder / file),
        layout=layout,  # type: ignore[arg-type]
        output_dir=str(folder / "out"),
        image_size=8,
        split="train" if layout == "question_answers" else None,
        rows_per_part=rows_per_part,
    )
    (source,) = open_sources(config, folder / f"work-{rows_per_part}")
    rows: Rows = []
    for part in source.parts():
        some = list(source.rows(part))
        require([row.row for row in some] == list(range(len(some))), "rows are not numbered")
        require(part.rows in (None, len(some)), f"{part} has {len(some)} rows")
        rows += some
    return rows


def _check(rows: Sequence[RawPair | Rejection]) -> Outcome:
    known = {pair["image"].encode() * 99 for pair in _pairs()}
    for row in rows:
        if isinstance(row, RawPair):
            row.caption.encode()
            json.dumps(row.record, allow_nan=False, ensure_ascii=False).encode()
            require(len(row.picture.read()) < 1 << 20, "a picture that is larger than its source")
        else:
            require(len(row.detail) < 2000, f"{row.reason} with a long detail")
    pairs = [row for row in rows if isinstance(row, RawPair)]
    is_whole = len(pairs) == len(rows) and all(pair.picture.read() in known for pair in pairs)
    return Outcome.VALID if is_whole else Outcome.COUNTED


def _verdict(row: RawPair | Rejection) -> str | None:
    """Return a row's caption or fault, None for a fault that the extent of its part decides."""
    if isinstance(row, RawPair):
        return row.caption
    return None if row.reason in (Reason.DUPLICATE_KEY, Reason.DAMAGED_SHARD) else str(row.reason)


def _read_table(file: str, layout: str) -> Callable[[Path, Files], Outcome]:
    """Read a file in small parts and in a large one, which must agree."""

    def read(folder: Path, files: Files) -> Outcome:
        small = _rows(folder, file, layout, rows_per_part=2)
        large = _rows(folder, file, layout, rows_per_part=1000)
        require(len(small) == len(large), f"{len(small)} rows in small parts, {len(large)} in one")
        for one, other in zip(small, large, strict=True):
            is_same = one.place == other.place and _verdict(one) in (_verdict(other), None)
            require(is_same or _verdict(other) is None, f"parts change a row: {one}, {other}")
        return _check(small)

    return read


def _read_tar(folder: Path, files: Files) -> Outcome:
    rows = _rows(folder, "00000.tar", "img2dataset", rows_per_part=1000)
    outcome = _check(rows)
    found = Counter(key for row in rows for key in _KEYS if f"'{key}'" in row.place)
    require(set(found) == set(_KEYS), f"rows of the Parquet file are lost: {found}")
    failed = [row for row in rows if isinstance(row, Rejection)]
    return Outcome.VALID if len(failed) == _NUM_FAILED else outcome


def _mutate_csv(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.5:
        return mutate_bytes(rng, content)
    at = rng.randrange(len(content))
    return (
        content[:at] + rng.choice((b'"', b",", b"\r", b"\n", b"\0", b'""', b"\xff")) + content[at:]
    )


TARGETS = [
    Target(name="csv pairs", quick=40, files=_files("csv"), mutate={".csv": _mutate_csv},
           read=_read_table("pairs.csv", "csv")),
    Target(name="parquet pairs", quick=20, files=_files("parquet"),
           mutate={".parquet": mutate_bytes}, read=_read_table("pairs.parquet", "parquet")),
    Target(name="coco pairs", quick=30, files=_files("coco"), mutate={".json": mutate_json},
           read=_read_table("annotations/captions_train2017.json", "coco")),
    Target(name="question pairs", quick=20, files=_question_files,
           mutate={".json": mutate_json}, read=_read_table("FM-CH-QA.json", "question_answers")),
    Target(name="img2dataset tars", quick=25, files=_files("img2dataset"),
           mutate={".tar": mutate_tar}, read=_read_tar),
]  # fmt: skip
