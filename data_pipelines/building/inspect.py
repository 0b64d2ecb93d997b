"""The first stage: one task reads the rows of one part, judges them, and prepares their pictures.

A row is judged in the order of cost: its caption first, then its picture, then by models that see
both. A picture is decoded once for consecutive rows, and not at all where all their captions are
rejected. Nothing is kept of a row but its line in the metadata; pictures wait for the models a
batch at a time.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipelines.building.folders import (
    PICTURES_FOLDER,
    ROWS_FOLDER,
    THUMBNAILS_FOLDER,
    part_name,
)
from data_pipelines.building.pictures import PartPictures, PreparedPicture
from data_pipelines.building.records import Finished, Work, once
from data_pipelines.building.thumbnails import Thumbnails
from data_pipelines.captions import clean_text
from data_pipelines.curation.curator import Curator
from data_pipelines.curation.verdicts import CaptionVerdict
from data_pipelines.duplicates.content_hashes import sha256_of_text
from data_pipelines.metadata import COLUMNS, write_rows
from data_pipelines.rejections import RejectedError, Rejection
from data_pipelines.sources.rows import Part, RawPair, Source
from ernie_vilg.config.curation import CurationConfig, Rules
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import writing_path
from ernie_vilg.storage.jsonl import line_of
from ernie_vilg.system.memory import keep_freed_memory

_PAIRS_PER_BATCH = 32
_CAPTIONS_PER_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class CurationPlan:
    """The rules of one source, by which a process finds the curator that it has loaded."""

    sha256: str
    """Hash of the curation settings."""
    name: str
    """Name of the rules."""
    config: CurationConfig
    rules: Rules

    def __hash__(self) -> int:
        """Hash what names the rules: settings with a mapping have no hash of their own."""
        return hash((self.sha256, self.name))


@lru_cache(maxsize=8)  # loaded once per process
def curator_of(plan: CurationPlan) -> Curator:
    """Return the curator of a plan.

    Raises:
        InputError: as for `Curator`.
    """
    return Curator(plan.config, plan.rules)


@dataclass(frozen=True, kw_only=True)
class InspectTask:
    """One part to inspect."""

    number: int
    """Number of the part over all sources."""
    source: Source
    part: Part
    plan: CurationPlan
    config: BuildShardsConfig
    work_folder: Path

    @property
    def name(self) -> str:
        """Name of the part's files."""
        return part_name(self.number)


def inspect_part(task: InspectTask) -> Finished:
    """Inspect a part unless that is done.

    Returns:
        its record: `rows`, `kept`, and `rejected` by reason; and `sha256`, the hash of what was
        read.

    Raises:
        InputError: the source changed, or another process inspects the part.
    """
    keep_freed_memory()
    return once(task.work_folder, task.name, lambda: _inspect(task))


def _inspect(task: InspectTask) -> Work:
    rows_file, pictures_file, thumbnails_file = (
        task.work_folder / folder / f"{task.name}.{ending}"
        for folder, ending in (
            (ROWS_FOLDER, "parquet"),
            (PICTURES_FOLDER, "bin"),
            (THUMBNAILS_FOLDER, "parquet"),
        )
    )
    thumbnails = Thumbnails()
    temporary = writing_path(pictures_file)
    with temporary.open("wb") as file:
        pictures = PartPictures(file, curator_of(task.plan), task.config)
        rows = _PartRows(task, pictures, thumbnails).read()
    _check_number(task, len(rows))
    temporary.replace(pictures_file)
    write_rows(rows_file, rows, COLUMNS)
    thumbnails.write(thumbnails_file)
    return Work(
        files=(rows_file, thumbnails_file),
        large_files=(pictures_file,),
        content=_content(rows),
    )


def _content(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the record of a part."""
    rejected = Counter(row["reason"] for row in rows if "reason" in row)
    digest = hashlib.sha256()
    for row in rows:
        read = {
            name: row.get(name) for name in ("picture_id", "caption", "pixels_sha256", "reason")
        }
        digest.update(line_of(read))
    return {
        "rows": len(rows),
        "kept": len(rows) - rejected.total(),
        "rejected": dict(sorted(rejected.items())),
        "sha256": digest.hexdigest(),
    }


class _PartRows:
    """Reads and judges the rows of a part."""

    def __init__(self, task: InspectTask, pictures: PartPictures, thumbnails: Thumbnails) -> None:
        self._task = task
        self._curator = curator_of(task.plan)
        self._judges_pairs = _judges_pairs(task.plan.rules)
        self._pictures = pictures
        self._thumbnails = thumbnails
        self._waiting: list[tuple[dict[str, Any], PreparedPicture, Image.Image]] = []
        self._verdicts: dict[int, CaptionVerdict] = {}
        """Verdicts about captions by row, where they were judged together."""

    def read(self) -> list[dict[str, Any]]:
        """Return the metadata of all rows."""
        if self._task.plan.rules.translate:
            self._judge_captions()
        rows = list(self._rows())
        self._judge_waiting()
        return rows

    def _rows(self) -> Iterator[dict[str, Any]]:
        for pair in self._task.source.rows(self._task.part):
            row: dict[str, Any] = {
                "part": self._task.number,
                "row": pair.row,
                "source": self._task.part.source,
                "place": pair.place,
            }
            yield row
            if isinstance(pair, Rejection):
                row.update(reason=str(pair.reason), detail=pair.detail)
                continue
            try:
                self._inspect(pair, row)
            except RejectedError as error:
                _reject(row, error)

    def _inspect(self, pair: RawPair, row: dict[str, Any]) -> None:
        row["picture_id"] = pair.picture_id
        self._inspect_caption(pair, row)
        picture = self._pictures.prepare(pair)
        row.update(picture.columns)
        if picture.rejection is not None:
            self._thumbnails.offer(row, picture.rejection, picture.image)
            raise picture.rejection
        row["text_sha256"] = sha256_of_text(row["caption"])
        row["record"] = line_of(pair.record).decode().removesuffix("\n")
        if not self._judges_pairs:
            row.update(self._pictures.store(picture))
            return
        self._waiting.append((row, picture, picture.view()))
        if len(self._waiting) == _PAIRS_PER_BATCH:
            self._judge_waiting()

    def _inspect_caption(self, pair: RawPair, row: dict[str, Any]) -> None:
        most = self._task.config.max_caption_characters
        row["caption"] = pair.caption[:most]  # that of a rejected row, until there is a clean one
        caption = self._clean(pair)
        verdict = self._verdicts.pop(pair.row, None) or self._curator.check_caption(caption)
        row.update(verdict.measures)
        row["caption"] = verdict.caption
        if verdict.transforms:  # a model may write what no source may
            row["caption"] = clean_text(verdict.caption, max_characters=most)
        if verdict.caption != pair.caption:
            row["original_caption"] = pair.caption[: 4 * most]
        if verdict.transforms:
            row["transforms"] = ",".join(verdict.transforms)
        if verdict.rejection is not None:
            raise verdict.rejection

    def _judge_captions(self) -> None:
        """Judge all captions of the part a batch at a time, which translates them faster."""
        pairs = (
            pair for pair in self._task.source.rows(self._task.part) if isinstance(pair, RawPair)
        )
        while batch := list(islice(pairs, _CAPTIONS_PER_BATCH)):
            clean = {}
            for pair in batch:
                with suppress(RejectedError):  # it is rejected in its turn
                    clean[pair.row] = self._clean(pair)
            verdicts = self._curator.check_captions(list(clean.values()))
            self._verdicts.update(zip(clean, verdicts, strict=True))

    def _clean(self, pair: RawPair) -> str:
        most = self._task.config.max_caption_characters
        return clean_text(pair.caption, max_characters=most)

    def _judge_waiting(self) -> None:
        """Judge the pairs of a batch by models, and store the pictures of those that are kept."""
        if not self._waiting:
            return
        verdicts = self._curator.check_pairs(
            [view for _, _, view in self._waiting],
            [row["caption"] for row, _, _ in self._waiting],
        )
        for (row, picture, view), verdict in zip(self._waiting, verdicts, strict=True):
            row.update(verdict.measures)
            if verdict.rejection is None:
                row.update(self._pictures.store(picture))
            else:
                self._thumbnails.offer(row, verdict.rejection, view)
                _reject(row, verdict.rejection)
        self._waiting.clear()


def _reject(row: dict[str, Any], error: RejectedError) -> None:
    row.update(reason=str(error.reason), detail=error.detail)


def _judges_pairs(rules: Rules) -> bool:
    """Return whether models judge pairs, so that pictures wait for a batch."""
    limits = (rules.min_similarity, rules.max_nsfw, rules.max_watermark)
    return any(limit is not None for limit in limits)


def _check_number(task: InspectTask, number: int) -> None:
    if task.part.rows is not None and number != task.part.rows:
        raise InputError(
            f"source {task.source.name}: {task.part.file} had {task.part.rows} rows from "
            f"{task.part.start} on and then {number}: it was changed while it was read; start "
            "again when it is complete"
        )
