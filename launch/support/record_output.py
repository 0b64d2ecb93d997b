"""A file of records that is checked before the work and written while the work goes on."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.storage.jsonl import line_of
from ernie_vilg.storage.locks import lock, warn_of_no_locks


class RecordOutput:
    """An open JSON Lines file, locked by this process."""

    def __init__(self, descriptor: int) -> None:
        """Take an open file."""
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self.num_records = 0

    def clear(self) -> None:
        """Remove the records of an earlier call."""
        self._file.truncate(0)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record."""
        line = line_of(record)
        while line:
            line = line[self._file.write(line) :]
        self.num_records += 1

    def flush(self) -> None:
        """Flush the records to the device."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let other processes write the file."""
        self._file.close()


@contextmanager
def record_output(path: Path, setting: str) -> Iterator[RecordOutput]:
    """Open and lock a file of records, and make its folder.

    Args:
        path: the file. An existing one keeps its content until `clear`.
        setting: name and value of the setting that names the file, for messages.

    Raises:
        InputError: the file cannot be written, or another process writes it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, was_made = _open(path)
    except OSError as error:
        raise InputError(
            f"{setting}: {path} cannot be written ({error.strerror}): name another file"
        ) from error
    output = RecordOutput(descriptor)
    try:
        if not path.is_file():
            raise InputError(f"{setting}: {path} is no regular file: name another")
        is_locked = lock(descriptor)
        if is_locked is False:
            raise InputError(f"{setting}: another process is writing {path}: wait for its end")
        if is_locked is None:
            warn_of_no_locks(path)
        yield output
        output.flush()
    except BaseException:
        if was_made and output.num_records == 0:
            path.unlink(missing_ok=True)
        raise
    finally:
        output.close()


def _open(path: Path) -> tuple[int, bool]:
    """Open a file at its end; return the descriptor, and whether this process made the file."""
    flags = os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT, 0o644), False
