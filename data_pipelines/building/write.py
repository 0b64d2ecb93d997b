"""The third stage: one task writes the samples of one shard, from prepared pictures."""

import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from data_pipelines.building.folders import PICTURES_FOLDER, ROWS_FOLDER, part_name, split_folder
from data_pipelines.building.records import Finished, Work, once
from data_pipelines.building.select import SAMPLES_FILE
from data_pipelines.images import EXTENSIONS
from data_pipelines.metadata import database, parquet
from data_pipelines.shard_writer import shard_name, write_shard
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import index_path

SHARD_PREFIX = "images"
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to write."""

    split: str
    index: int
    work_folder: Path
    config: BuildShardsConfig

    @property
    def path(self) -> Path:
        """File of the shard in the work folder."""
        return split_folder(self.work_folder, self.split) / shard_name(SHARD_PREFIX, self.index)


def write_image_shard(task: ShardTask) -> Finished:
    """Write a shard unless that is done.

    Returns:
        its record: `shard`, the manifest's entry; `captions`, how many its samples have; and
        `enlarged`, the number of pictures smaller than `image_size`.

    Raises:
        InputError: a prepared picture is damaged, or another process writes the shard.
    """
    return once(task.work_folder, f"{task.split}-{task.index:05d}", lambda: _write(task))


def _write(task: ShardTask) -> Work:
    counts = {"captions": 0, "enlarged": 0}
    members = ("json", "txt", EXTENSIONS[task.config.image_format])
    with database() as connection:
        shard = write_shard(task.path, _samples(task, connection, counts), members=members)
    assert shard is not None, "every shard has a sample"
    return Work(
        files=(task.path, index_path(task.path)), content={"shard": asdict(shard), **counts}
    )


def _samples(
    task: ShardTask, connection: DuckDBPyConnection, counts: dict[str, int]
) -> Iterator[Sample]:
    """Yield the samples of a shard; add up their captions and enlarged pictures in `counts`."""
    with closing(_StoredPictures(task.work_folder)) as pictures:
        for _, group in groupby(_kept_rows(task, connection), key=itemgetter("position")):
            rows = list(group)
            first = rows[0]
            captions = [row["caption"] for row in rows]
            counts["captions"] += len(captions)
            counts["enlarged"] += first["is_enlarged"]
            yield {
                KEY: f"{first['number']:08d}".encode(),
                EXTENSIONS[task.config.image_format]: pictures.read(first),
                "txt": "\n".join(captions).encode(),
                "json": json.dumps(_record(first, captions), ensure_ascii=False).encode(),
            }


def _record(first: dict[str, Any], captions: list[str]) -> dict[str, Any]:
    """Return the JSON object of a sample: what the source says of its first row, and its origin."""
    record = {**json.loads(first["record"]), "caption": captions[0]}
    if len(captions) > 1:
        record["captions"] = captions
    origin = {"source": first["source"], "place": first["place"], "picture": first["picture_id"]}
    return {**record, "origin": origin}


def _kept_rows(task: ShardTask, connection: DuckDBPyConnection) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard's samples in order, by column."""
    samples = (
        f"(select * from {parquet(task.work_folder / SAMPLES_FILE)} "
        f"where split = '{task.split}' and shard = {task.index})"
    )
    parts = connection.execute(f"select distinct part from {samples} order by part").fetchall()
    files = [task.work_folder / ROWS_FOLDER / f"{part_name(part)}.parquet" for (part,) in parts]
    connection.execute(f"""
        select position, number, part, source, place, picture_id, caption, record,
            picture_offset, picture_bytes, picture_crc32, is_enlarged
        from {samples} join {parquet(*files)} using (part, row)
        order by position, part, row
    """)
    assert connection.description is not None
    names = [column[0] for column in connection.description]
    while rows := connection.fetchmany(_ROWS_AT_ONCE):
        for row in rows:
            yield dict(zip(names, row, strict=True))


class _StoredPictures:
    """Reads prepared pictures; the file of one part is open at a time."""

    def __init__(self, work_folder: Path) -> None:
        self._folder = work_folder / PICTURES_FOLDER
        self._path: Path | None = None

    def read(self, row: dict[str, Any]) -> bytes:
        """Return the prepared picture of a row.

        Raises:
            InputError: its bytes have changed.
        """
        path = self._folder / f"{part_name(row['part'])}.bin"
        if path != self._path:
            self.close()
            self._file, self._path = path.open("rb"), path
        self._file.seek(row["picture_offset"])
        content = self._file.read(row["picture_bytes"])
        if zlib.crc32(content) != row["picture_crc32"]:
            raise InputError(
                f"{path} changed after it was written, at byte {row['picture_offset']}: look for "
                f"another program that writes there, or a failing disk; then remove {path} and "
                "start again"
            )
        return content

    def close(self) -> None:
        """Close the open file."""
        if self._path is not None:
            self._file.close()
            self._path = None


def stored_picture(work_folder: Path, row: dict[str, Any]) -> bytes:
    """Return the prepared picture of a row of the metadata in the work folder."""
    with closing(_StoredPictures(work_folder)) as pictures:
        return pictures.read(row)
