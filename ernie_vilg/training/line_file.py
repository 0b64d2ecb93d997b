"""A file that lines are added to, on a disk that may be full for a while.

Whoever is killed leaves at most one line that is cut short, the last. A line that does not reach
the disk waits for the next one, so that a full disk costs nothing but time.

Source: ours.
"""

import logging
import os
from pathlib import Path

_MOST_WAITING_BYTES = 16 << 20

logger = logging.getLogger(__name__)


class LineFile:
    """Lines in the order in which they were added."""

    def __init__(self, path: Path) -> None:
        """Open a file at its end; it is made where there is none.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._waiting = b""
        self._has_warned = False

    def append(self, line: str) -> None:
        """Add a line, without its end; never raises.

        What the disk does not take waits in memory, and is given up above 16 MiB.
        """
        added = line.encode() + b"\n"
        if len(self._waiting) + len(added) <= _MOST_WAITING_BYTES:
            self._waiting += added
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            if not self._has_warned:
                logger.warning("%s: %s; the run goes on, lines wait", self._path, error.strerror)
            self._has_warned = True
        else:
            self._has_warned = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
