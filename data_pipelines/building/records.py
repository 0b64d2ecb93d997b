"""Records of finished tasks: a restart keeps what is recorded and unchanged.

A task writes its files under temporary names and renames them; then it writes its record, which has
the sizes and hashes of the files and what the program needs to know of them. A task that was killed
has no record and is done again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import json_bytes, sha256_of_file, write_bytes
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.locks import locked
from ernie_vilg.storage.shard_manifest import describe_file

RECORDS_FOLDER = "records"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Files and findings of one task."""

    files: Sequence[Path]
    """Small files, which a restart compares with their hashes."""
    large_files: Sequence[Path] = ()
    """Files of which a restart compares the sizes alone; their readers check the content."""
    content: dict[str, Any]
    """JSON object for the program."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The record of a finished task."""

    content: dict[str, Any]
    """JSON object for the program."""
    is_earlier: bool
    """Whether an earlier run of the program has done the task."""


def once(work_folder: Path, name: str, task: Callable[[], Work]) -> Finished:
    """Do a task unless it is finished.

    Args:
        work_folder: folder of the job; the task's files are in it.
        name: name of the record.
        task: writes the files.

    Raises:
        InputError: another process does it at the moment.
    """
    record = work_folder / RECORDS_FOLDER / f"{name}.json"
    lock = record.with_suffix(".lock")
    lock.touch()
    with locked(lock) as is_locked:
        if is_locked is False:
            raise InputError(
                f"{record} belongs to a task that another process is doing: wait for its end, then "
                "start again"
            )
        content = _read(work_folder, record)
        if content is not None:
            return Finished(content=content, is_earlier=True)
        done = task()
        files = [_described(work_folder, path) for path in done.files]
        sizes = [_sized(work_folder, path) for path in done.large_files]
        entry = {"files": files + sizes, "content": done.content}
        write_bytes(record, json_bytes(entry), is_only_writer=True)
        return Finished(content=read_object(record)["content"], is_earlier=False)


def _read(work_folder: Path, record: Path) -> dict[str, Any] | None:
    """Return the content of a record; None if there is none, or its files have changed."""
    if not record.is_file():
        return None
    try:
        entry = read_object(record)
        for file in entry["files"]:
            path = work_folder / file["file"]
            is_same = path.is_file() and path.stat().st_size == file["bytes"]
            if not is_same or file.get("sha256") not in (None, sha256_of_file(path)):
                raise InputError(f"{path} changed after it was written")
        content = entry["content"]
    except (InputError, KeyError, TypeError) as error:
        logger.warning("doing the task of %s again: %s", record.name, error)
        return None
    assert isinstance(content, dict)
    return content


def _described(work_folder: Path, path: Path) -> dict[str, Any]:
    return {**asdict(describe_file(path)), "file": str(path.relative_to(work_folder))}


def _sized(work_folder: Path, path: Path) -> dict[str, Any]:
    return {"file": str(path.relative_to(work_folder)), "bytes": path.stat().st_size}
