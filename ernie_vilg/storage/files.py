"""Files and folders that are written whole, or not at all.

A file or folder is written under a temporary name beside its final one, flushed to the device, and
renamed. A reader never sees half of it. Leftovers of a killed writer have names that begin with a
dot, and the next writer of the same file or folder removes them:

    .writing-<name>-<token>   a file or scratch folder in use; every writer has a token of its own
    .writing-<name>           a folder that is being written; its writer holds a lock on it
    .replaced-<name>          the folder that had the name, until the new one has it
    .removing-<name>          a folder that is being removed

Where a kill left neither the old nor the new folder under the name, `recover_folder` puts the old
one back. `clear_leftovers` does so for all folders of one parent and removes every other leftover
that no living writer holds.

Source: ours; the rename protocol is the usual one of POSIX file systems.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ernie_vilg.errors import InputError
from ernie_vilg.storage.locks import is_at, lock, open_to_lock, warn_of_no_locks

WRITING_PREFIX, REPLACED_PREFIX, REMOVING_PREFIX = ".writing-", ".replaced-", ".removing-"

_HASH_BLOCK_BYTES = 1 << 20
_TOKEN = re.compile(r"[0-9a-f]{8}")
_MOST_ATTEMPTS = 10


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def require_sha256(setting: str, path: Path, expected: str | None) -> str:
    """Return the SHA-256 of a file that a setting names.

    Args:
        setting: name of the setting; `<setting>_sha256` has the expected hash.
        path: the file.
        expected: hash that the file must have; None accepts any.

    Raises:
        InputError: it has another one.
    """
    found = sha256_of_file(path)
    if expected not in (None, found):
        raise InputError(
            f"{setting}={path} has the SHA-256 {found}, not {setting}_sha256={expected}: it is "
            f"damaged or another file; get it again, or correct {setting}_sha256"
        )
    return found


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_bytes(path: Path, content: bytes, *, is_only_writer: bool = False) -> None:
    """Write a file whole: a reader sees the old content or the new, never a mixture.

    Several processes may write the same file at the same time; one of their contents stays.

    Args:
        path: the file.
        content: its content.
        is_only_writer: whether no other process writes it. Then the folder is not searched for
            leftovers, which takes long where it has a million files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_only_writer:
        temporary = writing_path(path)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
        return
    for attempt in range(1, _MOST_ATTEMPTS + 1):
        try:
            _write_once(path, content)
            break
        except FileNotFoundError:  # another writer removed it as a leftover before it was locked
            if attempt == _MOST_ATTEMPTS:
                raise
    fsync_folder(path.parent)
    for leftover in _leftovers_of(path):
        _remove_unless_locked(leftover)


@contextmanager
def written_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that becomes `path` when the block ends without an error.

    Several processes may write the same file at the same time; one of their contents stays.

    Args:
        path: the file's final name, in an existing folder.
    """
    temporary = _with_token(path)
    with temporary.open("xb") as file:
        try:
            lock(file.fileno())  # until the rename: no other writer removes it as a leftover
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented for people, Chinese as it is."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return the bytes that `write_json` writes."""
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


@contextmanager
def committed_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    After an error nothing is left of it. Where `path` is a link, the link stays and its target is
    written.

    Args:
        path: the folder's final name. Leftovers of a killed writer are removed.
        replace: whether a folder with content may be replaced.

    Raises:
        InputError: `path` is a mount point, or is taken and `replace` is false, or another process
            is writing it.
    """
    final = Path(os.path.realpath(path))
    if final.is_mount():
        raise InputError(
            f"{path} is a mount point, which cannot be replaced: name a folder inside it"
        )
    with _locked_folder(final) as temporary:
        recover_folder(final)
        if is_taken(final) and not (replace and final.is_dir()):
            raise InputError(f"{path} already exists: remove it, or name another folder")
        for entry in temporary.iterdir():
            remove(entry)
        yield temporary
        commit_folder(temporary, final)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new folder of this process alone, which is removed at the end.

    Leftovers of killed holders of the same name are removed first.

    Args:
        parent: an existing folder.
        name: purpose of the folder, a part of its name.
    """
    for leftover in _leftovers_of(parent / name):
        _remove_unless_locked(leftover)
    for _ in range(_MOST_ATTEMPTS):
        scratch = _with_token(parent / name)
        scratch.mkdir()
        descriptor = open_to_lock(scratch)
        if descriptor is None:  # another process removed it as a leftover
            continue
        try:
            if lock(descriptor) is not False and is_at(descriptor, scratch):
                try:
                    yield scratch
                finally:
                    remove(scratch)
                return
        finally:
            os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "other processes remove each new folder", str(parent))


def commit_folder(temporary: Path, final: Path) -> None:
    """Flush every file under `temporary` and rename it to `final`, replacing a folder there.

    Libraries that write through temporary files leave them readable by their owner alone; every
    file and folder within gets the rights of `temporary` itself.

    Raises:
        InputError: something in it is neither a file nor a folder.
    """
    rights = stat.S_IMODE(temporary.stat().st_mode)
    for path in sorted(temporary.rglob("*")):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"{path} is neither a file nor a folder: put a copy in its place")
        path.chmod(rights if stat.S_ISDIR(mode) else rights & 0o666)
        _fsync(path)
    fsync_folder(temporary)
    put_folder(temporary, final)


def put_folder(temporary: Path, final: Path) -> None:
    """Rename a flushed folder to its final name; the folder that it replaces stays until then.

    Raises:
        OSError: it cannot be renamed; the old folder has its name again.
    """
    replaced = _replaced(final)
    if is_taken(final):
        remove(replaced)
        final.rename(replaced)
    try:
        temporary.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    fsync_folder(final.parent)
    remove(replaced)


def recover_folder(final: Path) -> None:
    """Put a replaced folder back where a kill left nothing under its name; remove it otherwise.

    The only writer of the folder calls it, before it writes or looks for the folder.
    """
    replaced = _replaced(final)
    if not os.path.lexists(replaced):
        return
    if is_taken(final):
        remove(replaced)
    else:
        replaced.rename(final)
        fsync_folder(final.parent)


def writing_path(final: Path) -> Path:
    """Return the temporary name of a folder, or of a file with a single writer."""
    return final.with_name(f"{WRITING_PREFIX}{final.name}")


def without_name(folder: Path) -> Path:
    """Rename a folder before it is removed, so that a folder with its name is always whole.

    Returns:
        its new path, for `remove`.
    """
    nameless = removing_path(folder)
    remove(nameless)
    return folder.rename(nameless)


def removing_path(folder: Path) -> Path:
    """Return the name of a folder while it is removed."""
    return folder.with_name(f"{REMOVING_PREFIX}{folder.name}")


def clear_leftovers(parent: Path) -> None:
    """Recover or remove all leftovers of killed writers in a folder; its only writer calls it.

    Entries that another process holds a lock on stay.
    """
    if not parent.is_dir():
        return
    for entry in sorted(parent.iterdir()):
        if entry.name.startswith(REPLACED_PREFIX):
            recover_folder(parent / entry.name.removeprefix(REPLACED_PREFIX))
        elif entry.name.startswith(WRITING_PREFIX):
            _remove_unless_locked(entry, is_only_writer=True)
        elif entry.name.startswith(REMOVING_PREFIX):
            remove(entry)


def is_taken(path: Path) -> bool:
    """Return whether a path exists and is not an empty folder."""
    if path.is_dir():
        return any(path.iterdir())
    return os.path.lexists(path)


def remove(path: Path) -> None:
    """Remove a file, link or folder, if it exists; the target of a link stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_skip_missing)
    else:
        path.unlink(missing_ok=True)


def fsync_folder(path: Path) -> None:
    """Flush a folder's entries, that is their names, to the device."""
    _fsync(path)


def _skip_missing(_function: Any, _path: str, error: Any) -> None:
    if not isinstance(error[1], FileNotFoundError):  # another process removes it too
        raise error[1]


def _write_once(path: Path, content: bytes) -> None:
    with written_file(path) as file:
        file.write(content)


def _with_token(path: Path) -> Path:
    return path.with_name(f"{WRITING_PREFIX}{path.name}-{secrets.token_hex(4)}")


def _leftovers_of(path: Path) -> list[Path]:
    start = f"{WRITING_PREFIX}{path.name}-"
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(start)]
    return [path.with_name(name) for name in names if _TOKEN.fullmatch(name[len(start) :])]


def _remove_unless_locked(leftover: Path, *, is_only_writer: bool = False) -> None:
    try:
        descriptor = open_to_lock(leftover)
    except PermissionError:  # another user's
        return
    if descriptor is None:
        if is_only_writer:
            remove(leftover)
        return
    try:
        is_locked = lock(descriptor)
        if is_locked or (is_locked is None and is_only_writer):
            remove(leftover)
    finally:
        os.close(descriptor)


@contextmanager
def _locked_folder(final: Path) -> Iterator[Path]:
    """Yield the temporary folder of `final`, whose only writer is this process.

    After an error the folder is removed.
    """
    temporary = writing_path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_MOST_ATTEMPTS):
        if temporary.is_symlink() or not temporary.is_dir():
            remove(temporary)
        temporary.mkdir(exist_ok=True)
        descriptor = open_to_lock(temporary)
        if descriptor is None:  # another writer has just renamed it
            continue
        try:
            is_locked = lock(descriptor)
            if is_locked is False:
                raise InputError(
                    f"{final} is being written by another process: wait for its end, or name "
                    "another folder"
                )
            if is_locked is None:
                warn_of_no_locks(final)
            if is_at(descriptor, temporary):
                try:
                    yield temporary
                except BaseException:
                    if is_at(descriptor, temporary):  # it may have its final name already
                        remove(temporary)
                    raise
                return
        finally:
            os.close(descriptor)
    raise InputError(f"{final} is being written by other processes: let one of them do it")


def _replaced(final: Path) -> Path:
    return final.with_name(f"{REPLACED_PREFIX}{final.name}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
