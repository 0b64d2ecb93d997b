"""The work folder of a program that writes shards, which keeps finished work until all is done.

Its `job.json` records everything that the shards depend on, so that shards of another job are not
used. The folder appears under its name together with that file: if several processes start at the
same time, one creates the folder and the others use it, because rename(2) does not replace a
folder that is not empty.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import duckdb

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import (
    REMOVING_PREFIX,
    remove,
    removing_path,
    sha256_of_file,
    sha256_of_json,
    without_name,
    write_json,
)
from ernie_vilg.storage.json_files import read_json, read_object
from ernie_vilg.storage.locks import locked
from ernie_vilg.storage.shard_manifest import FILE_NAME

COMMIT_FILE = "commit.json"
"""Written when all is done, just before the finished folder gets its name."""
_JOB_FILE = "job.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)

Kind = Literal["building", "encoding"]


@contextmanager
def work_folder(
    output_dir: Path, job: Mapping[str, Any], *, kind: Kind, is_shared: bool
) -> Iterator[Path]:
    """Yield the work folder, with `shards/` and `records/` of this job only.

    While the block runs, only processes that share the folder can use it.

    Args:
        output_dir: folder that the finished shards become, with links resolved.
        job: everything that the bytes of the shards depend on, as JSON.
        kind: what the program does, the beginning of the folder's name.
        is_shared: true if other processes may be working in it; then nothing in it is removed.

    Raises:
        InputError: it is shared and belongs to another job, another process works in it, or its
            disk became full.
    """
    work = work_path(output_dir, kind)
    if work.exists() and not is_work_of(work, job):
        if is_shared:
            raise InputError(
                f"{work} belongs to another job ({_changed(work, job)}): end the processes that "
                "work there and remove it, or name another output_dir"
            )
        _remove_other_job(work, output_dir)
    if not work.exists():
        _make(work, job)
    with _held(work, output_dir, shared=is_shared), _full_disk_told(work):
        (work / "shards").mkdir(exist_ok=True)  # missing after a kill at the end of a job
        yield work


def _remove_other_job(work: Path, output_dir: Path) -> None:
    if not (work / _JOB_FILE).is_file():  # made by hand: our processes write that file first
        remove(without_name(work))
        return
    with _held(work, output_dir):
        remove(without_name(work))


@contextmanager
def _held(work: Path, output_dir: Path, *, shared: bool = False) -> Iterator[None]:
    with locked(work / _JOB_FILE, shared=shared) as is_locked:
        if is_locked is False:
            raise InputError(
                f"output_dir={output_dir} is being written by another process: wait for its end, "
                f"or name another folder (it works in {work})"
            )
        yield


def record_commit(work: Path) -> None:
    """Record that the finished `shards/` gets its name now, so that a restart after that knows it.

    Its manifest is written.
    """
    write_json(work / COMMIT_FILE, _commit_of(read_object(work / _JOB_FILE), work / "shards"))


def clear_finished(output_dir: Path, job: Callable[[], Mapping[str, Any]], *, kind: Kind) -> bool:
    """Remove what a command left that was killed after the finished folder got its name.

    Args:
        output_dir: finished folder, with links resolved.
        job: returns everything that the bytes of the shards depend on, as for `work_folder`; called
            only where a command was killed.
        kind: what the program does.

    Returns:
        whether there is such a finished folder of this very job.

    Raises:
        InputError: the command is removing it at this moment.
    """
    work = work_path(output_dir, kind)
    places = (work, removing_path(work))
    # os.path.isfile is false for names that are too long, which are refused later.
    records = [path / COMMIT_FILE for path in places if os.path.isfile(path / COMMIT_FILE)]
    if not records or not os.path.isfile(output_dir / FILE_NAME):
        return False
    wanted = job()
    if read_json(records[0]) != _commit_of(wanted, output_dir):
        return False
    if is_work_of(work, wanted):
        with _held(work, output_dir):
            remove_work_folder(output_dir, kind)
    else:  # it has lost its name already
        remove_work_folder(output_dir, kind)
    return True


def _commit_of(job: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return what identifies a finished folder and its job."""
    return {"job": sha256_of_json(job), "manifest": sha256_of_file(folder / FILE_NAME)}


@contextmanager
def _full_disk_told(work: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, duckdb.Error) as error:
        # DuckDB has no class of its own for it, but its message has that of the system.
        is_full = getattr(error, "errno", None) in _FULL or any(
            os.strerror(number) in str(error) for number in _FULL
        )
        if not is_full:
            raise
        free = shutil.disk_usage(work).free
        raise InputError(
            f"the disk of {work} is full, or your share of it ({free:,} bytes are free; {error}): "
            "make room, then start the same command again, which goes on with the finished work"
        ) from error


def remove_work_folder(output_dir: Path, kind: Kind) -> None:
    """Remove the work folder of a finished job, and leftovers of killed starts.

    COMMIT_FILE goes last, so that a start after a kill meanwhile still knows that all is done.
    """
    work = work_path(output_dir, kind)
    if (work / COMMIT_FILE).is_file():
        for path in work.iterdir():
            if path.name not in (_JOB_FILE, COMMIT_FILE):
                remove(path)
    unnamed = re.compile(rf"{re.escape(work.name)}-\w{{8}}|{REMOVING_PREFIX}{re.escape(work.name)}")
    if work.exists():
        remove(without_name(work))  # renamed first: a half-removed folder looks like another job
    for path in work.parent.iterdir():
        if unnamed.fullmatch(path.name):
            remove(path)


def work_path(output_dir: Path, kind: Kind) -> Path:
    """Return the path of the work folder of an output folder."""
    return output_dir.with_name(f".{kind}-{output_dir.name}")


def _changed(work: Path, job: Mapping[str, Any]) -> str:
    """Name what differs from the job that the folder belongs to."""
    if not (work / _JOB_FILE).is_file():
        return f"it has no {_JOB_FILE}"
    earlier = read_object(work / _JOB_FILE)
    names = sorted(
        name for name in job.keys() | earlier.keys() if job.get(name) != earlier.get(name)
    )
    return f"with another {', '.join(names)}"


def is_work_of(work: Path, job: Mapping[str, Any]) -> bool:
    """Return whether a work folder is there and belongs to a job."""
    job_file = work / _JOB_FILE
    return job_file.is_file() and bool(read_json(job_file) == job)


def _make(work: Path, job: Mapping[str, Any]) -> None:
    work.parent.mkdir(parents=True, exist_ok=True)
    unnamed = Path(mkdtemp(prefix=f"{work.name}-", dir=work.parent))
    for name in ("shards", "records"):
        (unnamed / name).mkdir()
    write_json(unnamed / _JOB_FILE, dict(job))
    try:
        os.rename(unnamed, work)
    except OSError:
        shutil.rmtree(unnamed)
        if not is_work_of(work, job):
            raise
