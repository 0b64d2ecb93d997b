"""One part is inspected: pictures are read once, judged in order, and stored once."""

import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipelines.building import inspect
from data_pipelines.building.folders import PICTURES_FOLDER, ROWS_FOLDER, THUMBNAILS_FOLDER
from data_pipelines.building.inspect import CurationPlan, InspectTask, inspect_part
from data_pipelines.building.records import RECORDS_FOLDER
from data_pipelines.curation.curator import Curator
from data_pipelines.curation.verdicts import Verdict
from data_pipelines.metadata import database, parquet
from data_pipelines.rejections import Reason, RejectedError, Rejection
from data_pipelines.sources.rows import Part, RawPair
from ernie_vilg.config.curation import CurationConfig, Rules
from ernie_vilg.config.shards import BuildShardsConfig


def png(grey: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (grey,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class CountedPicture:
    """A picture that says when it is read."""

    name: str
    content: bytes
    reads: list[str]

    def read(self) -> bytes:
        self.reads.append(self.name)
        return self.content


@dataclass
class ListedRows:
    """A source of given (picture, caption) rows; None cannot be read."""

    entries: Sequence[tuple[str, str] | None]
    contents: dict[str, bytes]
    reads: list[str] = field(default_factory=list)
    name: str = "web"

    def fingerprint(self) -> str:
        return "0"

    def parts(self) -> Iterator[Part]:
        yield Part(source=self.name, file="list")

    def of_part(self, part: Part) -> "ListedRows":
        return self

    def rows(self, part: Part) -> Iterator[RawPair | Rejection]:
        for row, entry in enumerate(self.entries):
            if entry is None:
                yield Rejection(row=row, place=f"{row}", reason=Reason.NOT_JSON, detail="{")
                continue
            picture = CountedPicture(entry[0], self.contents[entry[0]], self.reads)
            yield RawPair(
                row=row, place=f"{row}", picture_id=entry[0], picture=picture, caption=entry[1],
                record={"caption": entry[1]},
            )  # fmt: skip


def inspected(folder: Path, source: ListedRows, rules: Rules) -> list[dict[str, Any]]:
    for name in (ROWS_FOLDER, PICTURES_FOLDER, THUMBNAILS_FOLDER, RECORDS_FOLDER):
        (folder / name).mkdir()
    curation = CurationConfig()
    task = InspectTask(
        number=0,
        source=source,
        part=next(source.parts()),
        plan=CurationPlan(sha256=str(folder), name="web", config=curation, rules=rules),
        config=BuildShardsConfig(source="x", output_dir="x", image_size=4, curation=curation),
        work_folder=folder,
    )
    inspect_part(task)
    with database() as connection:
        found = connection.execute(
            f"select * from {parquet(folder / ROWS_FOLDER / 'part-00000.parquet')}"
        )
        assert found.description is not None
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_a_picture_is_read_once_for_its_captions_and_never_for_rejected_ones(
    tmp_path: Path,
) -> None:
    source = ListedRows(
        entries=[("a", "one"), ("a", " "), ("a", "two"), None, ("b", " "), ("c", "three")],
        contents={"a": png(10), "b": png(20), "c": b"no picture"},
    )

    rows = inspected(tmp_path, source, Rules())

    assert source.reads == ["a", "c"]
    assert [row["reason"] for row in rows] == [
        None, "empty_caption", None, "not_json", "empty_caption", "unreadable_image"
    ]  # fmt: skip
    assert rows[0]["picture_offset"] == rows[2]["picture_offset"] == 0
    content = (tmp_path / PICTURES_FOLDER / "part-00000.bin").read_bytes()
    assert len(content) == rows[0]["picture_bytes"]
    assert zlib.crc32(content) == rows[0]["picture_crc32"]
    assert (rows[0]["width"], rows[0]["is_enlarged"], rows[1]["width"]) == (8, False, None)


def test_a_rule_of_pictures_leaves_thumbnails_and_stores_nothing(tmp_path: Path) -> None:
    source = ListedRows(
        entries=[("wide", "one"), ("fine", "two")],
        contents={"wide": png(10, (300, 20)), "fine": png(20)},
    )

    rows = inspected(tmp_path, source, Rules(max_aspect_ratio=3.0))

    assert [row["reason"] for row in rows] == ["aspect_ratio", None]
    with database() as connection:
        thumbnails = connection.execute(
            f"select part, row, jpeg from "
            f"{parquet(tmp_path / THUMBNAILS_FOLDER / 'part-00000.parquet')}"
        ).fetchall()
    assert [(part, row) for part, row, _ in thumbnails] == [(0, 0)]
    with Image.open(io.BytesIO(thumbnails[0][2])) as image:
        assert (image.format, image.width) == ("JPEG", 96)


def test_models_see_pairs_in_batches_and_what_they_reject_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []

    class FakeCurator(Curator):
        def __init__(self) -> None:
            super().__init__(CurationConfig(), Rules())

        def check_pairs(
            self, images: Sequence[Image.Image], captions: Sequence[str]
        ) -> list[Verdict]:
            batches.append((len(images), max(max(image.size) for image in images)))
            rejection = RejectedError(Reason.SIMILARITY, "0.1")
            return [
                Verdict(
                    measures={"similarity": 0.1},
                    rejection=rejection if caption == "caption 1" else None,
                )
                for caption in captions
            ]

    monkeypatch.setattr(inspect, "curator_of", lambda plan: FakeCurator())
    source = ListedRows(
        entries=[(f"{n}", f"caption {n}") for n in range(33)],
        contents={f"{n}": png(n, (1000, 8) if n == 32 else (8, 8)) for n in range(33)},
    )

    rows = inspected(tmp_path, source, Rules(min_similarity=0.5))

    assert batches == [(32, 8), (1, 960)]
    assert [row["row"] for row in rows if row["reason"] is not None] == [1]
    assert (rows[1]["reason"], rows[1]["picture_offset"]) == ("similarity", None)
    assert rows[2]["picture_offset"] == rows[0]["picture_bytes"]
    assert rows[0]["similarity"] == pytest.approx(0.1)
