"""Reader of files in object stores and on web servers, in blocks and with retries.

A block that fails for a temporary reason (a server error, a lost connection, a timeout) is
requested again; earlier blocks are kept. A copy is compared with the expected size and SHA-256, and
made again if it differs. All of a file's failures count against one limit.

Messages name a URL without its user, password and query, which may be secrets. They are removed
from an error's own text too, and its chain of causes is cut for the same reason.

Source: ours, on fsspec (https://filesystem-spec.readthedocs.io), s3fs, gcsfs and aiohttp.
"""

import copy
import hashlib
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

import fsspec

from ernie_vilg.errors import InputError
from ernie_vilg.storage.locations import is_remote, shown
from ernie_vilg.storage.remote_errors import describe, is_temporary, status_of
from ernie_vilg.storage.web_files import too_long, web_filesystem

logger = logging.getLogger(__name__)

EXTRA = "pip install 'ernie-vilg[remote]'"

_JITTER = random.SystemRandom()  # separate from every seeded generator


class RemoteError(OSError):
    """A remote file that cannot be read. The message is for people."""


class ContentDiffersError(RemoteError):
    """A remote file with unexpected content. The message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        """Describe the difference.

        Args:
            reason: "size" or "sha256".
            message: text that names the file and the difference.
        """
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class TransferLimits:
    """Limits of one file's transfer."""

    max_attempts: int = 5
    """Failures after which the transfer ends."""
    block_bytes: int = 16 << 20
    """Size of one request in bytes, and the memory of a transfer."""
    block_seconds: float = 60.0
    """Timeout of one block: a stalled or very slow connection is an error."""
    wait_seconds: float = 1.0
    """Wait before the second attempt; it doubles with each further one."""
    max_wait_seconds: float = 30.0
    """Longest wait between two attempts."""


DEFAULT_LIMITS = TransferLimits()


class BlockSource(Protocol):
    """A file that can be read in blocks."""

    name: str
    """Name of the file, for messages."""

    def read(self, start: int, end: int, timeout_seconds: float) -> bytes:
        """Return the bytes from `start` up to `end`, fewer only where the file ends before."""


class RemoteFolder:
    """A folder in an object store or on a web server."""

    def __init__(self, location: str, limits: TransferLimits = DEFAULT_LIMITS) -> None:
        """Prepare to read, without a request.

        Args:
            location: s3://bucket/path, gs://bucket/path or https://host/path. A query after
                the latter, such as an access token, is sent with every request.
            limits: limits of each file's transfer.

        Raises:
            InputError: it is no such URL.
            ImportError: the library that reads it is not installed.
        """
        if not is_remote(location):
            raise InputError(f"{location} is a local folder where a URL is required")
        self.name = shown(location)
        self.limits = limits
        self._location = location
        self._filesystem = _filesystem(location.partition(":")[0], limits)

    def file(self, name: str) -> "RemoteFile":
        """Return one of its files.

        Raises:
            InputError: the name leads out of the folder.
        """
        if "/" in name or name in ("", ".", ".."):
            raise InputError(f"{name!r} is not a file of {self.name}: a name has no '/' or '..'")
        parts = urlsplit(self._location)
        if parts.scheme != "https":
            return RemoteFile(self._filesystem, f"{self._location.rstrip('/')}/{name}")
        path = f"{parts.path.rstrip('/')}/{quote(name)}"
        return RemoteFile(self._filesystem, urlunsplit(parts._replace(path=path)))

    def inner(self, name: str) -> "RemoteFolder":
        """Return one of its folders, which shares its connections.

        Raises:
            InputError: the name leads out of the folder.
        """
        folder = copy.copy(self)
        file = self.file(name)
        folder._location, folder.name = file.url, file.name
        return folder

    def names(self) -> list[str]:
        """Return the names of the files in the folder, sorted.

        Raises:
            InputError: it is on a web server, which lists nothing.
            FileNotFoundError: there is no such folder.
            RemoteError: it cannot be read.
        """
        if self._location.startswith("https:"):
            raise InputError(f"{self.name} is on a web server, which lists no files: name a file")
        retries = _Retries(self.name, self.limits)
        while True:
            try:
                entries = self._filesystem.ls(self._location, detail=True, refresh=True)
            except Exception as error:
                retries.after(error)
                continue
            names = {
                entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file"
            }
            return sorted(names - {""})

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file of unknown size, `block_bytes` at a time.

        Raises:
            FileNotFoundError: there is none.
            RemoteError: it cannot be read.
        """
        file, size = self.file(name), self.limits.block_bytes
        retries = _Retries(file.name, self.limits)
        start = 0
        while start % size == 0:  # a shorter block is the last
            try:
                block = file.read(start, start + size, self.limits.block_seconds)
                if len(block) > size:
                    raise too_long(size)
            except Exception as error:
                retries.after(error)
                continue
            if not block:
                return
            yield block
            start += len(block)

    def read(self, name: str, *, most_bytes: int) -> bytes:
        """Return the whole content of a small file.

        Args:
            name: name of the file.
            most_bytes: size above which the file is refused.

        Raises:
            FileNotFoundError: there is none.
            RemoteError: it cannot be read, or is longer.
        """
        file = self.file(name)
        retries = _Retries(file.name, self.limits)
        while True:
            try:
                content = file.read(0, most_bytes + 1, self.limits.block_seconds)
                if len(content) > most_bytes:
                    raise InputError(
                        f"it has more than {most_bytes:,} bytes, the most that is read"
                    )
                return content
            except Exception as error:
                retries.after(error)


class RemoteFile:
    """One file of a remote folder."""

    def __init__(self, filesystem: Any, url: str) -> None:
        """Name a file.

        Args:
            filesystem: fsspec's reader of the URL's scheme.
            url: URL of the file.
        """
        self.name = shown(url)
        self.url = url
        self._filesystem = filesystem

    def read(self, start: int, end: int, timeout_seconds: float) -> bytes:
        """Return the bytes from `start` up to `end`, fewer where the file ends before."""
        try:
            content: bytes = self._filesystem.cat_file(
                self.url, start=start, end=end, timeout=timeout_seconds
            )
        except Exception as error:
            if status_of(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""
            raise
        return content


def copy_blocks(
    source: BlockSource,
    target: BinaryIO,
    *,
    num_bytes: int,
    sha256: str,
    limits: TransferLimits = DEFAULT_LIMITS,
) -> None:
    """Copy a file whose size and hash are known, and check both.

    Args:
        source: the file to read.
        target: an empty file to write.
        num_bytes: size of the file.
        sha256: hash of the file, 64 hexadecimal digits.
        limits: limits of this transfer.

    Raises:
        FileNotFoundError: there is no such file.
        ContentDiffersError: each attempt gave another file, or one damaged on the way.
        RemoteError: it cannot be read.
        OSError: the target cannot be written.
    """
    retries = _Retries(source.name, limits)
    digest = hashlib.sha256()
    copied = 0
    while copied < num_bytes:
        end = min(copied + limits.block_bytes, num_bytes)
        try:
            block = _read_block(source, copied, end, limits.block_seconds)
        except Exception as error:
            retries.after(error)
            continue
        target.write(block)
        digest.update(block)
        copied = end
        if copied == num_bytes and digest.hexdigest() != sha256:
            retries.after(
                ContentDiffersError("sha256", f"its SHA-256 is {digest.hexdigest()}, not {sha256}")
            )
            digest, copied = hashlib.sha256(), 0
            target.seek(0)


def _read_block(source: BlockSource, start: int, end: int, timeout_seconds: float) -> bytes:
    block = source.read(start, end, timeout_seconds)
    if len(block) > end - start:
        raise too_long(end - start)
    if len(block) < end - start:
        raise ContentDiffersError("size", f"it ends at byte {start + len(block)}, before {end}")
    return block


class _Retries:
    """Counts the failures of one file's transfer and waits between attempts."""

    def __init__(self, name: str, limits: TransferLimits) -> None:
        self._name = name
        self._limits = limits
        self._failures = 0

    def after(self, error: Exception) -> None:
        """Wait before another attempt.

        Raises:
            FileNotFoundError: the file does not exist.
            ContentDiffersError: the content differed in the last attempt.
            RemoteError: another attempt would not help, or this was the last.
        """
        self._failures += 1
        if isinstance(error, ContentDiffersError):
            cause = str(error)
        else:
            cause = describe(error, self._limits.block_seconds)
        if isinstance(error, FileNotFoundError) or status_of(error) == HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(f"{self._name} does not exist") from None
        if not is_temporary(error):
            raise RemoteError(
                f"{self._name} cannot be read: {cause}. Another attempt would not help: check the "
                "location, the credentials and the certificate"
            ) from None
        if self._failures >= self._limits.max_attempts:
            message = f"{self._name} was given up after {self._failures} attempts: {cause}"
            if isinstance(error, ContentDiffersError):
                raise ContentDiffersError(error.reason, message) from None
            raise RemoteError(message) from None
        self._wait(cause)

    def _wait(self, cause: str) -> None:
        seconds = min(
            self._limits.wait_seconds * 2 ** (self._failures - 1), self._limits.max_wait_seconds
        )
        # Ranks that failed together must not retry together.
        seconds *= _JITTER.uniform(0.5, 1)
        logger.warning(
            "%s: attempt %d of %d failed (%s), the next in %.1f s",
            self._name,
            self._failures,
            self._limits.max_attempts,
            cause,
            seconds,
        )
        time.sleep(seconds)


def _filesystem(scheme: str, limits: TransferLimits) -> Any:
    """Return fsspec's reader for a scheme, without its own retries where they can be disabled.

    Two cannot: aiohttp, below all of them, retries once when a connection is lost before an answer
    begins, and gcsfs retries up to 5 times, all within `block_seconds`.
    """
    try:
        if scheme == "https":
            return web_filesystem()
        if scheme == "s3":
            timeouts = dict.fromkeys(("connect_timeout", "read_timeout"), limits.block_seconds)
            options = {"retries": {"total_max_attempts": 1}, **timeouts}
            filesystem = fsspec.filesystem("s3", config_kwargs=options)
            filesystem.retries = 1
            return filesystem
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise ImportError(f"{scheme}:// cannot be read ({error}): {EXTRA}") from error
