"""Locations of sources: folders and files of this machine, of object stores and of web servers.

Files that are read as a whole, such as tables, are copied once into the work folder where they are
remote.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import scratch_folder, written_file
from ernie_vilg.storage.locations import is_remote, shown
from ernie_vilg.storage.remote import RemoteFolder

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_FILE_NAME = re.compile(r".+\.(csv|tsv|jsonl|json|parquet|tar|txt)")
_MOST_FILES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder, or some files in one."""

    folder: str
    """Folder or URL."""
    files: tuple[str, ...] = ()
    """Names of the files that the setting names; empty where it names the folder."""

    @property
    def is_remote(self) -> bool:
        """Whether the folder is a URL."""
        return is_remote(self.folder)

    def name_of(self, file: str) -> str:
        """Return the name of a file for messages."""
        return f"{shown(self.folder)}/{file}"

    def names(self) -> list[str]:
        """Return the names of the files in the folder, sorted; hidden ones are left out.

        Raises:
            InputError: the folder is on a web server, or there is none.
            OSError: it cannot be read.
        """
        if not self.is_remote:
            with os.scandir(self.folder) as entries:
                names = sorted(entry.name for entry in entries if entry.is_file())
        elif self.folder.startswith("https:"):
            raise InputError(
                f"source={shown(self.folder)} is a folder on a web server, which lists no files: "
                "name the file, such as .../captions.jsonl, or tar files with a range in braces, "
                "such as .../{00000..00009}.tar"
            )
        else:
            names = RemoteFolder(self.folder).names()
        return [name for name in names if not name.startswith(".")]

    def has(self, file: str, work: Path) -> bool:
        """Return whether a file beside the named ones exists, and copy it if it is remote."""
        try:
            return self.fetch(file, work).is_file()
        except FileNotFoundError:
            return False

    def fetch(self, file: str, work: Path) -> Path:
        """Return the local path of a file; a remote one is copied once.

        Args:
            file: name of the file.
            work: folder for copies.

        Raises:
            FileNotFoundError: there is no such remote file.
            RemoteError: it cannot be read.
        """
        if not self.is_remote:
            return Path(self.folder, file)
        path = work / file
        if not path.is_file():
            work.mkdir(parents=True, exist_ok=True)
            with written_file(path) as copy:
                for block in RemoteFolder(self.folder).blocks(file):
                    copy.write(block)
        return path

    @contextmanager
    def opened(self, work: Path) -> Iterator[Path]:
        """Yield a folder for copies that are removed when the block ends."""
        if not self.is_remote:
            yield work
            return
        work.mkdir(parents=True, exist_ok=True)
        with scratch_folder(work, "copies") as folder:
            yield folder


def place_of(location: str) -> Place:
    """Return the folder and files that a setting names.

    Args:
        location: folder, file, or files with a range in braces; local or a URL.

    Raises:
        InputError: there is no such local file or folder.
    """
    if is_remote(location):
        parts = urlsplit(location)
        path, _, name = parts.path.rpartition("/")
        if not _FILE_NAME.fullmatch(name):
            return Place(folder=location)
        folder = urlunsplit(parts._replace(path=path))
        return Place(folder=folder, files=tuple(expand(name)))
    folder, name = os.path.split(Path(location).absolute())
    if _BRACES.search(name) and not os.path.lexists(location):
        files = tuple(expand(name))
        missing = [file for file in files if not Path(folder, file).is_file()]
        if missing:
            raise InputError(f"source={location}: there is no {missing[0]} in {folder}")
        return Place(folder=folder, files=files)
    if os.path.isdir(location):
        return Place(folder=str(Path(location).absolute()))
    if not os.path.isfile(location):
        raise InputError(
            f"source={location} does not exist{_nearest(location)}: name a folder, a file or a URL"
        )
    return Place(folder=folder, files=(name,))


def _nearest(location: str) -> str:
    """Return for people where a path leads to nothing."""
    path = Path(location).absolute()
    there = next((parent for parent in path.parents if parent.is_dir()), None)
    if os.path.lexists(path) or there is None:
        return " as a file or folder"
    return f": {there} has no {path.relative_to(there).parts[0]!r}"


def expand(name: str) -> list[str]:
    """Return the names that a range in braces means, such as "{00000..00009}.tar".

    Raises:
        InputError: the range ends before it begins, or is too long.
    """
    match = _BRACES.search(name)
    if match is None:
        return [name]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MOST_FILES:
        raise InputError(f"{name}: write the range as {{first..last}}, such as {{00000..00009}}")
    width = len(match[1])
    return [
        f"{name[: match.start()]}{number:0{width}d}{name[match.end() :]}"
        for number in range(first, last + 1)
    ]
