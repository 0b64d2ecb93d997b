"""Pictures of raw pairs: found by their names, read only when they are needed.

A name is a path below the source's folder, or below `images_root`. It may reach nothing else, by
`..`, by a link or as an absolute path.
"""

import errno
import functools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.rows import MAX_PICTURE_BYTES, Picture
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import open_regular
from ernie_vilg.storage.locations import is_remote
from ernie_vilg.storage.remote import RemoteFolder

_PASSING = (
    errno.EAGAIN,
    errno.EINTR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
"""Errors of the machine or of its network, not of a file."""


@dataclass(frozen=True, kw_only=True)
class LocalPicture:
    """A file of this machine."""

    path: str
    """Real path of the file."""

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return os.path.basename(self.path)

    def read(self) -> bytes:
        """Return the content of the file.

        Raises:
            RejectedError: it is missing, no regular file, or too large.
        """
        try:
            with open_regular(Path(self.path)) as file:
                if os.fstat(file.fileno()).st_size > MAX_PICTURE_BYTES:
                    raise too_large(self.name)
                content = file.read(MAX_PICTURE_BYTES + 1)
        except (OSError, InputError) as error:
            _refuse_passing(error)
            problem = error.strerror if isinstance(error, OSError) else "it is no regular file"
            raise RejectedError(Reason.MISSING_IMAGE, f"{self.name!r} ({problem})") from error
        return _bounded(content, self.name)


@dataclass(frozen=True, kw_only=True)
class RemotePicture:
    """A file of an object store or web server."""

    location: str
    """URL of the folder that the name starts from."""
    name: str
    """Path of the file within that folder."""

    def read(self) -> bytes:
        """Return the content of the file.

        Raises:
            RejectedError: it is missing or too large.
            RemoteError: the server does not answer.
        """
        *folders, file = self.name.split("/")
        folder = _remote_folder(self.location, tuple(folders))
        content = bytearray()
        try:
            for block in folder.blocks(file):
                content += block
                if len(content) > MAX_PICTURE_BYTES:
                    raise too_large(self.name)
        except FileNotFoundError as error:
            raise RejectedError(Reason.MISSING_IMAGE, f"{self.name!r:.300} (no file)") from error
        return bytes(content)


@dataclass(frozen=True, kw_only=True)
class DeferredPicture:
    """A picture within another file, or one that is drawn."""

    name: str
    """Name for messages."""
    get: Callable[[], bytes]
    """Returns the content."""

    def read(self) -> bytes:
        """Return the content.

        Raises:
            RejectedError: it is too large.
        """
        return _bounded(self.get(), self.name)


def _refuse_passing(error: Exception) -> None:
    """Raise an error again that says nothing about the file: on another day it could be read."""
    if isinstance(error, OSError) and error.errno in _PASSING:
        raise error


def too_large(name: str) -> RejectedError:
    """Return the rejection of a file of more than MAX_PICTURE_BYTES bytes."""
    return RejectedError(
        Reason.IMAGE_TOO_LARGE, f"{name!r:.300} has more than {MAX_PICTURE_BYTES:,} bytes"
    )


def _bounded(content: bytes, name: str) -> bytes:
    if len(content) > MAX_PICTURE_BYTES:
        raise too_large(name)
    return content


@functools.lru_cache(maxsize=1024)
def _remote_folder(location: str, folders: tuple[str, ...]) -> RemoteFolder:
    """Return a folder, whose connections are kept for the next picture."""
    if not folders:
        return RemoteFolder(location)
    return _remote_folder(location, folders[:-1]).inner(folders[-1])


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """Folders in which the pictures of one source are looked up."""

    folder: str
    """Folder or URL of the source."""
    images_root: str | None = None
    """Folder or URL where the names are looked up first."""

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders, in the order of the search."""
        return (self.folder,) if self.images_root is None else (self.images_root, self.folder)

    def find(self, name: str) -> tuple[str, Picture]:
        """Return the id and the file of a picture.

        Args:
            name: path in a row of the source.

        Raises:
            RejectedError: the name leads out of the folders, or to nothing, or to a folder, pipe
                or device.
        """
        if is_remote(self.folders[0]):
            path = _relative(name)
            return path, RemotePicture(location=self.folders[0], name=path)
        roots = [_real_folder(folder) for folder in self.folders if not is_remote(folder)]
        if name.startswith("/") and self.images_root is not None:
            return _found(name, name, roots[:1])
        relative = _relative(name)
        for root in roots[:-1]:
            try:
                return _found(os.path.join(root, relative), name, roots)
            except RejectedError as error:
                if error.reason != Reason.MISSING_IMAGE:
                    raise
        return _found(os.path.join(roots[-1], relative), name, roots)


def _relative(name: str) -> str:
    """Return a path without superfluous parts.

    Raises:
        RejectedError: it is absolute or leaves its folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise RejectedError(Reason.UNSAFE_PATH, f"{name!r:.300}")
    if is_url(name):
        raise RejectedError(
            Reason.UNSAFE_PATH, f"{name!r:.300} is a URL: download the pictures with img2dataset"
        )
    return "/".join(parts)


def is_url(name: str) -> bool:
    """Return whether a picture's name is a URL."""
    return name.startswith(("http://", "https://", "s3://", "gs://"))


def _found(path: str, name: str, roots: list[str]) -> tuple[str, LocalPicture]:
    """Return the id and the file of a picture that lies in one of the roots, links followed."""
    if ".." in PurePosixPath(name).parts or "\0" in name:
        raise RejectedError(Reason.UNSAFE_PATH, f"{name!r:.300}")
    try:
        real = os.path.join(_real_folder(os.path.dirname(path)), os.path.basename(path))
        mode = os.lstat(real).st_mode
        if stat.S_ISLNK(mode):
            real = os.path.realpath(real)
            mode = os.stat(real).st_mode
    except OSError as error:
        _refuse_passing(error)
        raise RejectedError(Reason.MISSING_IMAGE, f"{name!r:.300} ({error.strerror})") from error
    root = next((root for root in roots if _is_within(real, root)), None)
    if root is None:
        raise RejectedError(
            Reason.UNSAFE_PATH,
            f"{name!r:.300} leads to {real!r:.300}: set images_root to a folder that may be read",
        )
    if not stat.S_ISREG(mode):  # a pipe would wait for a writer forever
        raise RejectedError(Reason.MISSING_IMAGE, f"{name!r:.300} is not a regular file")
    return real[len(root) :].lstrip("/"), LocalPicture(path=real)


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    """Return the real path of a folder; a source has many pictures in each."""
    return os.path.realpath(folder)


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
