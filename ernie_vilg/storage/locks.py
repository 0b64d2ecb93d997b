"""Locks on files and folders, which end with the process that holds them.

No child process inherits one, because all children are started by exec.

Source: ours, on flock(2).
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF)
"""Errors of a file system without locks. Lustre has none by default; NFS has none for folders
and answers EBADF."""

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[bool | None]:
    """Hold a lock on a file or folder for as long as the block runs, without waiting.

    Args:
        path: an existing file or folder.
        shared: whether other processes may hold the lock too, all of them shared.

    Yields whether this process has it, on what is still at `path`; None on a file system without
    locks.
    """
    descriptor = open_to_lock(path)
    if descriptor is None:  # the holder has removed it
        yield False
        return
    try:
        is_locked = lock(descriptor, shared=shared)
        if is_locked is None:
            warn_of_no_locks(path)
        yield is_locked and is_at(descriptor, path)
    finally:
        os.close(descriptor)


def open_to_lock(path: Path) -> int | None:
    """Open a file or folder to lock it; None for a link, a socket, or a missing one."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            return os.open(path, flags | os.O_RDWR)  # NFS locks only what can be written
        except IsADirectoryError:
            return os.open(path, flags | os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise


def warn_of_no_locks(path: Path) -> None:
    """Warn that nothing prevents a second writer."""
    logger.warning("%s: this file system has no locks; let no other process write it", path)


def lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed.

    Returns:
        whether this process has the lock now; None on a file system without locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
