"""How anything of ours reaches the disk: whole, or not at all.

A file or folder is written under a temporary name beside its final one, flushed to the
device, and renamed. A reader therefore never sees half of it, and a killed writer leaves
only a temporary name, which the next writer of the same thing removes.

Source: ours; the rename protocol is the usual one of POSIX file systems.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HASH_BLOCK_BYTES = 1 << 20
_TEMPORARY_PREFIX = ".writing-"


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: a reader sees the old content or the new, never a mixture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented for people, Chinese as it is."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return what `write_json` writes."""
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): restore it or write it again with the program "
            "that made it"
        ) from error


@contextmanager
def committed_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    Args:
        path: the folder's final name. A temporary folder left by a killed writer is removed.
        replace: whether a folder already at `path` may be replaced.

    Raises:
        ValueError: `path` exists and `replace` is false.
    """
    if path.exists() and not replace:
        raise ValueError(f"{path} already exists: remove it, or name another folder")
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    commit_folder(temporary, path)


def commit_folder(temporary: Path, path: Path) -> None:
    """Flush every file under `temporary` and rename it to `path`, replacing what is there."""
    for file in sorted(temporary.rglob("*")):
        _fsync(file)
    fsync_folder(temporary)
    if path.exists():
        # Two renames, so that a kill between them leaves the old folder under a known name.
        outgoing = path.with_name(f"{_TEMPORARY_PREFIX}outgoing-{path.name}")
        shutil.rmtree(outgoing, ignore_errors=True)
        path.rename(outgoing)
        temporary.rename(path)
        shutil.rmtree(outgoing)
    else:
        temporary.rename(path)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Flush a folder's own entries (its names) to the device."""
    _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
