"""A path is a path, never a pattern, for libraries that glob what they are given.

Source: ours, on the links in /proc/<process>/fd of Linux.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def path_without_pattern(folder: Path) -> Iterator[str]:
    """Yield another path to a folder, for a library that takes paths for patterns.

    It has none of `[ ] * ?`, whatever the folder is called, and holds for this process's children.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
