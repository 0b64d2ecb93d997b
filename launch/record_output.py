"""A file of records that is found to be writable before the work, and written as the work goes.

Source: ours.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ernie_vilg.errors import InputError
from ernie_vilg.storage.jsonl import line_of

logger = logging.getLogger(__name__)


class RecordOutput:
    """An open JSON Lines file that this process alone writes."""

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

    def close(self) -> None:
        """Flush the records to the device, and let other processes write the file."""
        with self._file:
            os.fsync(self._file.fileno())


@contextmanager
def record_output(path: Path, setting: str) -> Iterator[RecordOutput]:
    """Open and lock a file of records; its folder is made.

    Args:
        path: the file. One that is there keeps its content until `clear`.
        setting: name and value of the setting that names it, for messages.

    Raises:
        InputError: it cannot be written, or another process writes it.
    """
    was_there = os.path.lexists(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        raise InputError(f"{setting}: {path} cannot be written ({error.strerror})") from error
    output, is_ours = RecordOutput(descriptor), False
    try:
        if not path.is_file():
            raise InputError(f"{setting}: {path} is no regular file: name another")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{setting}: {path} is being written by another process: wait for its end"
            ) from error
        except OSError as error:
            logger.warning("%s: no lock (%s): let no other process write it", path, error.strerror)
        is_ours = True
        yield output
    except BaseException:
        if is_ours and not was_there and output.num_records == 0:
            path.unlink(missing_ok=True)
        raise
    finally:
        output.close()
