"""The samples of a tar file that another program wrote, found by its headers.

Members with the same name up to the first dot are one sample, wherever they are. Names are keys:
nothing is extracted. Contents are read at their places, when they are needed, up to a limit.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ernie_vilg.data.shards.damage import DamagedShardError
from ernie_vilg.data.shards.tar_index import walk_tar
from ernie_vilg.storage.json_files import open_regular

MAX_MEMBERS = 1 << 20
"""Most members of a tar file; about 300 MB of memory."""


@dataclass(kw_only=True)
class TarSample:
    """The members of one key."""

    key: str
    """Name of its members up to the first dot."""
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    """First byte and size of each member's content by extension in lower case."""
    problem: str = ""
    """Why it cannot be used, such as a member that is a link."""
    is_repeated: bool = False
    """Whether an earlier sample has the same key and a member of the same extension."""


@dataclass(frozen=True, kw_only=True)
class TarSamples:
    """The samples of a tar file in the order of their first members."""

    samples: list[TarSample]
    """Whole samples."""
    damage: str = ""
    """Why the file cannot be read to its end; empty if it can. The sample before the damage is
    left out, because members of it may be missing."""


def find_samples(path: Path) -> TarSamples:
    """Find the samples of a local tar file.

    Raises:
        OSError: it cannot be read.
    """
    samples: list[TarSample] = []
    newest: dict[str, TarSample] = {}
    with open_regular(path, buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        num_members = 0
        try:
            for member in walk_tar(file, path.name):
                if member.isdir():
                    continue
                num_members += 1
                if num_members > MAX_MEMBERS:
                    return TarSamples(samples=samples, damage=f"more than {MAX_MEMBERS:,} members")
                sample, extension = _place(member.name, samples, newest)
                if member.size < 0 or member.offset_data + member.size > end:
                    return TarSamples(
                        samples=[other for other in samples if other is not sample],
                        damage=f"it ends within the member {member.name!r:.200}",
                    )
                if not member.isreg() or member.issparse():
                    sample.problem = f"its member {extension!r:.100} is not a regular file"
                sample.members[extension] = (member.offset_data, member.size)
        except DamagedShardError as error:
            return TarSamples(samples=samples[:-1], damage=str(error))
    return TarSamples(samples=samples)


def _place(
    name: str, samples: list[TarSample], newest: dict[str, TarSample]
) -> tuple[TarSample, str]:
    """Return the sample that a member belongs to, a new one for a new key, and its extension."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    key, extension = folder + slash + stem, extension.lower()
    sample = newest.get(key)
    if sample is None or extension in sample.members:
        sample = newest[key] = TarSample(key=key, is_repeated=sample is not None)
        samples.append(sample)
    return sample, extension


def read_at(path: Path, place: tuple[int, int]) -> bytes:
    """Return the content of a member, given its first byte and size.

    Raises:
        OSError: the file became shorter.
    """
    offset, size = place
    with path.open("rb", buffering=0) as file:
        content = b""
        while len(content) < size:
            block = os.pread(file.fileno(), size - len(content), offset + len(content))
            if not block:
                raise OSError(f"{path} was changed while it was read")
            content += block
    return content


def first_member(members: Mapping[str, object], extensions: tuple[str, ...]) -> str | None:
    """Return the first of some extensions that a sample has."""
    return next((name for name in extensions if name in members), None)
