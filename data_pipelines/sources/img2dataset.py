"""Reader of WebDataset tars as img2dataset writes them, and of others like them.

    00000.tar           00000000.jpg (or .png, .webp), 00000000.txt, 00000000.json, ...
    00000.parquet       a row for every picture that was asked for, with key and status
    00000_stats.json    counts, not needed

The caption is the `.txt`, or a key of the `.json`. Rows of the Parquet file that were not
downloaded are rows of the source, rejected as FAILED_DOWNLOAD; a tar file without a Parquet file
counts its samples alone. One task reads one tar file.

After damage, the rows that the Parquet file has and the tar file no longer shows are DAMAGED_SHARD;
without a Parquet file, one row stands for the unknown rest.

Source: https://github.com/rom1504/img2dataset (layout of its output).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from data_pipelines.captions import text_of
from data_pipelines.metadata import database, parquet
from data_pipelines.rejections import Reason, RejectedError, Rejection
from data_pipelines.sources.listed import Entry, Pair, captions_of, numbered
from data_pipelines.sources.pictures import DeferredPicture, too_large
from data_pipelines.sources.places import Place
from data_pipelines.sources.rows import MAX_PICTURE_BYTES, Part, RawPair
from data_pipelines.sources.tar_samples import (
    TarSample,
    TarSamples,
    find_samples,
    first_member,
    read_at,
)
from data_pipelines.sources.text_parts import identity_of
from ernie_vilg.data.batches.pictures import PICTURE_MEMBERS
from ernie_vilg.data.shards.shard_index import SAFE_KEY
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.storage.json_files import object_of, parse_json

_CAPTION = "caption"
_MAX_TEXT_BYTES = 1 << 20
_SUCCESS = "success"


@dataclass(frozen=True, kw_only=True)
class Img2Dataset:
    """The samples of some tar files."""

    name: str
    """Name in the settings."""
    place: Place
    """Folder of the files."""
    files: tuple[str, ...]
    """Names of the tar files, in order."""
    caption_key: str | None
    """Key of the caption in the `.json`; None takes the `.txt`, or "caption" without one."""
    work: Path
    """Folder for copies of remote files."""

    def fingerprint(self) -> str:
        """Return a hash of the names of the files, and of sizes and times of local ones."""
        folder = Path(self.place.folder)
        files = (
            self.files if self.place.is_remote else [identity_of(folder / f) for f in self.files]
        )
        return sha256_of_json([self.place.folder, list(files)])

    def parts(self) -> Iterator[Part]:
        """Yield a part for every tar file."""
        for file in self.files:
            yield Part(source=self.name, file=file)

    def of_part(self, part: Part) -> "Img2Dataset":
        """Return the source with one tar file."""
        return replace(self, files=(part.file,))

    def rows(self, part: Part) -> Iterator[RawPair | Rejection]:
        """Yield the rows of a tar file and of the Parquet file beside it."""
        return numbered(self._entries(part.file))

    def _entries(self, file: str) -> Iterator[Entry]:
        with self.place.opened(self.work) as copies:
            path = self.place.fetch(file, copies)
            found = find_samples(path)
            table = str(Path(file).with_suffix(".parquet"))
            statuses: Mapping[str, tuple[str, str]] | None = None
            if self.place.has(table, copies):
                try:
                    statuses = _statuses(self.place.fetch(table, copies))
                except duckdb.Error as error:
                    detail = f"its rows are unknown: {error!s:.200}"
                    yield table, RejectedError(Reason.DAMAGED_SHARD, detail)
            for sample in found.samples:
                yield from self._entries_of(path, sample)
            yield from _missing(file, found, statuses)

    def _entries_of(self, path: Path, sample: TarSample) -> Iterator[Entry]:
        place = f"{path.name} {sample.key!r:.200}"
        try:
            picture = _picture_of(path, sample)
            record = _record_of(path, sample)
            captions = self._captions_of(path, sample, record)
        except RejectedError as error:
            yield place, error
            return
        for caption in captions:
            if isinstance(caption, RejectedError):
                yield place, caption
            else:
                full = {**record, _CAPTION: caption}
                text = text_of(caption, None)
                yield place, Pair(f"{path.name}/{sample.key}", picture, text, full)

    def _captions_of(
        self, path: Path, sample: TarSample, record: Mapping[str, Any]
    ) -> list[str | RejectedError]:
        if self.caption_key is not None or "txt" not in sample.members:
            return captions_of(record, self.caption_key or _CAPTION)
        content = _text(path, sample, "txt", Reason.CAPTION_TOO_LONG)
        try:
            return [content.decode()]
        except UnicodeDecodeError as error:
            raise RejectedError(
                Reason.MISSING_FIELD, f"byte {error.start} of its txt is not UTF-8"
            ) from error


def _picture_of(path: Path, sample: TarSample) -> DeferredPicture:
    """Return the picture of a usable sample."""
    if not SAFE_KEY.fullmatch(sample.key.encode("utf-8", "surrogateescape")):
        raise RejectedError(
            Reason.UNSAFE_PATH,
            "its key is not 1 to 128 letters, digits, '-', '_' and '/'",
        )
    if sample.is_repeated:
        raise RejectedError(Reason.DUPLICATE_KEY, "an earlier sample has its key")
    extension = first_member(sample.members, PICTURE_MEMBERS)
    if extension is None:
        found = ", ".join(sorted(sample.members))
        raise RejectedError(
            Reason.MISSING_IMAGE, f"none of {', '.join(PICTURE_MEMBERS)} among {found:.200}"
        )
    if sample.problem:
        raise RejectedError(Reason.MISSING_IMAGE, sample.problem)
    place = sample.members[extension]
    name = f"{sample.key}.{extension}"
    if place[1] > MAX_PICTURE_BYTES:
        raise too_large(name)
    return DeferredPicture(name=name, get=lambda: read_at(path, place))


def _record_of(path: Path, sample: TarSample) -> dict[str, Any]:
    if "json" not in sample.members:
        return {}
    try:
        content = _text(path, sample, "json", Reason.NOT_JSON)
        return object_of(parse_json(content, "its json", is_finite=True), "its json")
    except InputError as error:
        raise RejectedError(Reason.NOT_JSON, str(error)) from error


def _text(path: Path, sample: TarSample, extension: str, too_long: Reason) -> bytes:
    place = sample.members[extension]
    if place[1] > _MAX_TEXT_BYTES:
        raise RejectedError(too_long, f"its {extension} has {place[1]:,} bytes")
    return read_at(path, place)


def _missing(
    file: str, found: TarSamples, statuses: Mapping[str, tuple[str, str]] | None
) -> Iterator[Entry]:
    """Yield the rows that the tar file does not have."""
    if statuses is None:
        if found.damage:
            yield file, RejectedError(Reason.DAMAGED_SHARD, found.damage)
        return
    keys = {sample.key for sample in found.samples}
    num_lost = 0
    for key, (status, message) in statuses.items():
        if key in keys:
            continue
        place = f"{file} {key!r:.200}"
        if status != _SUCCESS:
            detail = f"{status}: {message}" if message else status
            yield place, RejectedError(Reason.FAILED_DOWNLOAD, detail[:300])
        elif found.damage:
            num_lost += 1
            yield place, RejectedError(Reason.DAMAGED_SHARD, found.damage)
        else:
            yield place, RejectedError(Reason.MISSING_IMAGE, "the tar file has no such sample")
    if found.damage and not num_lost:
        yield file, RejectedError(Reason.DAMAGED_SHARD, found.damage)


def _statuses(path: Path) -> dict[str, tuple[str, str]]:
    """Return status and error message of every row of a Parquet file by its key, in order.

    Raises:
        duckdb.Error: it is damaged, or has no columns key and status.
    """
    with database() as connection:
        columns = connection.execute(f"describe select * from {parquet(path)}").fetchall()
        has_message = "error_message" in {name for name, *_ in columns}
        message = "coalesce(cast(error_message as varchar), '')" if has_message else "''"
        table = parquet(path).removesuffix(")") + ", file_row_number=true)"
        rows = connection.execute(
            f"select cast(key as varchar), cast(status as varchar), {message} from {table} "
            "order by file_row_number"
        ).fetchall()
    return {str(key): (str(status), str(text)) for key, status, text in rows}
