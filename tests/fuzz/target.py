"""A target of the fuzzer: files that are read, how they are damaged, and who reads them."""

import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ernie_vilg.errors import InputError


class Outcome(StrEnum):
    """The ends that the reading of a damaged input may have."""

    REFUSED = "refused"
    """With an error that is named in the reader's documentation."""
    COUNTED = "counted"
    """The damaged part was skipped and counted, and all else read."""
    VALID = "valid"
    """The input is a valid one still, and was read as it stands."""


class Special(StrEnum):
    """Kinds of things that stand in the place of a file."""

    PIPE = "pipe"
    FOLDER = "folder"
    DANGLING = "dangling link"
    LOOP = "link to itself"
    MISSING = "missing"
    HUGE = "sparse file of 4 GB"


Content = bytes | Special
Files = dict[str, Content]
Mutate = Callable[[random.Random, bytes], bytes]


class WrongReading(AssertionError):  # noqa: N818, names what was found
    """A damaged input was read as something that it is not."""


def require(is_so: bool, message: str) -> None:
    """Raise `WrongReading` unless something holds."""
    if not is_so:
        raise WrongReading(message)


@dataclass(kw_only=True)
class Target:
    """One kind of file that is read."""

    name: str
    """In the table."""
    files: Callable[[], Mapping[str, bytes]]
    """Makes the undamaged files, by path within a folder; called once, in the parent."""
    read: Callable[[Path, Files], Outcome]
    """Reads a folder in which the files are; raises what the readers raise."""
    mutate: Mapping[str, Mutate]
    """Mutators by the end of a path; other files are left as they are."""
    repair: Callable[[random.Random, Files], Files] = lambda rng, files: files
    """Puts hashes right after damage, some of the time, so that it is not found at the door."""
    named: tuple[type[Exception], ...] = (InputError, OSError)
    """Errors that a reading may end with."""
    start: Callable[[], None] = lambda: None
    """Starts in a worker what all its readings need, such as a server."""
    specials: float = 0.03
    """Share of the cases in which a file's kind is swapped."""
    quick: int = 60
    """Cases of the fast share, fewer where a case takes long."""
    originals: Mapping[str, bytes] = field(default_factory=dict)
    """The files, as `files` made them."""

    def case(self, seed: int, index: int) -> Files:
        """Return the damaged files of one case."""
        rng = random.Random(f"{seed}/{self.name}/{index}")
        files: Files = dict(self.originals)
        known = [name for name in sorted(files) if self._mutator(name) is not None]
        name = rng.choice(known)
        if rng.random() < self.specials:
            files[name] = rng.choice(list(Special))
            return files
        mutate, content = self._mutator(name), files[name]
        assert mutate is not None
        assert isinstance(content, bytes)
        files[name] = mutate(rng, content)
        return self.repair(rng, files)

    def run(self, folder: Path, files: Files) -> Outcome:
        """Place the files, read them, and say how it ended; raise what may not be."""
        place(folder, files)
        try:
            return self.read(folder, files)
        except self.named as error:
            if isinstance(error, WrongReading):
                raise
            require(bool(str(error)), "an error without a message")
            require(len(str(error)) < 10_000, "a message of over 10,000 characters")
            return Outcome.REFUSED

    def _mutator(self, name: str) -> Mutate | None:
        return next((how for end, how in self.mutate.items() if name.endswith(end)), None)


def place(folder: Path, files: Files) -> None:
    """Empty a folder and put files into it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            _place_special(path, content)


def _place_special(path: Path, kind: Special) -> None:
    if kind is Special.PIPE:
        os.mkfifo(path)
    elif kind is Special.FOLDER:
        path.mkdir()
    elif kind is Special.DANGLING:
        path.symlink_to("nowhere")
    elif kind is Special.LOOP:
        path.symlink_to(path.name)
    elif kind is Special.HUGE:
        with path.open("wb") as file:
            file.truncate(4 << 30)


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its path in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
