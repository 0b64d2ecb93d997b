"""What lies in a folder of shards: the manifest that is written beside them.

A tar file cannot say how many samples it should hold, nor whether a byte of it changed, and
WebDataset's reader drops the rest of a damaged shard without a word. The manifest can: per
shard it records the number of samples, the size, the SHA-256 and the member set; for all of
them the settings that made them and the lineage, that is the hashes of what they were made
with.

Source: ours; shards are plain WebDataset tars (https://github.com/webdataset/webdataset).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ernie_vilg.errors import InputError
from ernie_vilg.locations import is_remote, shown
from ernie_vilg.remote import DEFAULT_LIMITS, RemoteFolder, TransferLimits
from ernie_vilg.storage.files import sha256_of_file, sha256_of_json, write_json
from ernie_vilg.storage.json_files import read_json

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1
CAPTION_LENGTHS = "caption_lengths"
"""Setting of token shards: number of captions by their ids in digits, end of text included."""
_LENGTH = re.compile(r"[1-9][0-9]{0,8}")

ShardKind = Literal["image", "token"]

KNOWN_MEMBERS = ("codes.npy", "jpeg", "jpg", "json", "png", "text.npy", "txt", "webp")
"""Extensions of members that are ever read; nothing else is decoded, and nothing unpickled."""

_FILE_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file and what it must hold."""

    file: str
    """Name within the manifest's folder."""
    samples: int
    """Number of samples."""
    bytes: int
    """File size."""
    sha256: str
    """Hash of the whole file, 64 hexadecimal digits."""
    members: tuple[str, ...]
    """Extensions that every sample has, sorted, such as ("json", "png", "txt")."""


_SHARD_KEYS = {field.name for field in fields(Shard)}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set: its shards in order, how they were made, and from what."""

    kind: ShardKind
    """"image": pictures and captions; "token": image codes and text ids."""
    shards: tuple[Shard, ...]
    settings: Mapping[str, Any]
    """What made the samples, such as {"image_size": 64, "crop": "center"}."""
    lineage: Mapping[str, str]
    """SHA-256 by name of what the samples were made with: for token shards "text_tokenizer",
    "image_tokenizer", "crop_settings" and "image_shards"."""

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    def digest(self) -> str:
        """Return the SHA-256 that names this data set, 64 hexadecimal digits."""
        return sha256_of_json(_as_json(self))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest beside its shards."""
    write_json(folder / FILE_NAME, _as_json(manifest))


def read_manifest(folder: Path, kind: ShardKind) -> Manifest:
    """Read the manifest of a folder of shards.

    Args:
        folder: where the shards are.
        kind: the kind of shards that the caller can use.

    Raises:
        InputError: there is no manifest, or it is of another kind or version or has a wrong
            entry.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise InputError(_no_manifest(str(folder)))
    return _manifest_of(read_json(path), str(folder), kind)


def read_manifest_at(
    location: str, kind: ShardKind, limits: TransferLimits = DEFAULT_LIMITS
) -> Manifest:
    """Read the manifest of a local folder or of an s3, gs or https URL.

    Args:
        location: where the shards are.
        kind: the kind of shards that the caller can use.
        limits: of the transfer from a URL.

    Raises:
        InputError: the location is of a kind that is not read, there is no manifest, or it is
            of another kind or version or has a wrong entry.
        ImportError: the library that reads the URL is not installed.
        OSError: the URL cannot be read.
    """
    if not is_remote(location):
        return read_manifest(Path(location), kind)
    name = shown(location)
    try:
        text = RemoteFolder(location, limits).read(FILE_NAME)
    except FileNotFoundError:
        raise InputError(_no_manifest(name)) from None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{name}/{FILE_NAME} is not valid JSON ({error}): copy it there again"
        ) from error
    return _manifest_of(content, name, kind)


def _no_manifest(name: str) -> str:
    return (
        f"{name} has no {FILE_NAME}: name a folder written by launch/build_shards.py "
        "(image shards) or launch/encode_shards.py (token shards)"
    )


def _manifest_of(content: Any, name: str, kind: ShardKind) -> Manifest:
    """Check what a manifest file says and return it."""
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{name}/{FILE_NAME} has format_version {version}, this code reads "
            f"{FORMAT_VERSION}: build the shards again"
        )
    for key, form in (("kind", str), ("shards", list), ("settings", dict), ("lineage", dict)):
        if not isinstance(content.get(key), form):
            raise InputError(
                f"{name}/{FILE_NAME} has no {key} of type {form.__name__}: restore it or build the "
                "shards again"
            )
    if content["kind"] != kind:
        raise InputError(
            f"{name} holds {content['kind']} shards where {kind} shards are needed: "
            "launch/encode_shards.py makes token shards from image shards"
        )
    shards = tuple(_shard_of(entry, name) for entry in content["shards"])
    _check_unique(shards, name)
    return Manifest(
        kind=content["kind"],
        shards=shards,
        settings=content["settings"],
        lineage=content["lineage"],
    )


def _shard_of(entry: Any, name: str) -> Shard:
    """Check one entry and return it."""
    problem = _problem_of(entry)
    if problem is not None:
        raise InputError(
            f"{name}/{FILE_NAME} has a shard with {problem}: restore the manifest or build the "
            "shards again"
        )
    return Shard(**{**entry, "members": tuple(entry["members"])})


def _problem_of(entry: Any) -> str | None:
    """Return what is wrong with an entry, None where nothing is."""
    if not isinstance(entry, dict) or entry.keys() != _SHARD_KEYS:
        return f"other entries than {', '.join(sorted(_SHARD_KEYS))}"
    file = entry["file"]
    if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
        return f"file={file!r}, which is no plain file name (letters, digits, . _ -, no '..')"
    for key in ("samples", "bytes"):
        # A bool is an int to Python, and true would pass for 1.
        if type(entry[key]) is not int or entry[key] < 1:
            return f"file={file} and {key}={entry[key]!r}, which is no positive whole number"
    if not isinstance(entry["sha256"], str) or not _SHA256.fullmatch(entry["sha256"]):
        return f"file={file} and sha256={entry['sha256']!r}, which is not 64 hexadecimal digits"
    members = entry["members"]
    if not isinstance(members, list) or not members:
        return f"file={file} and members={members!r}, which is no list of extensions"
    unknown = [member for member in members if member not in KNOWN_MEMBERS]
    if unknown:
        known = ", ".join(KNOWN_MEMBERS)
        return f"file={file} and members of extension {unknown[0]!r}, where only {known} are read"
    return None


def _check_unique(shards: tuple[Shard, ...], name: str) -> None:
    files = [shard.file for shard in shards]
    if len(set(files)) != len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise InputError(
            f"{name}/{FILE_NAME} names the shard {twice} twice: restore the manifest or build the "
            "shards again"
        )


def verify_shard(folder: Path, shard: Shard) -> None:
    """Check a shard's size and hash against the manifest.

    Raises:
        InputError: the file is missing, of another size or of other content.
    """
    path = folder / shard.file
    if not path.is_file():
        raise InputError(f"shard {path} is missing: copy it again or build the shards again")
    size = path.stat().st_size
    if size != shard.bytes:
        raise InputError(
            f"shard {path} has {size} bytes where the manifest says {shard.bytes}: copy it again"
        )
    if sha256_of_file(path) != shard.sha256:
        raise InputError(
            f"shard {path} differs from the manifest's SHA-256: it is damaged or was replaced; "
            "copy it again"
        )


def describe_shard(path: Path, *, samples: int, members: tuple[str, ...]) -> Shard:
    """Return the manifest's entry for a shard that was just written."""
    return Shard(
        file=path.name,
        samples=samples,
        bytes=path.stat().st_size,
        sha256=sha256_of_file(path),
        members=tuple(sorted(members)),
    )


def _as_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "kind": manifest.kind,
        "samples": manifest.num_samples,
        "settings": dict(manifest.settings),
        "lineage": dict(manifest.lineage),
        "shards": [asdict(shard) for shard in manifest.shards],
    }


def caption_lengths_of(recorded: Any, num_captions: int) -> dict[int, int]:
    """Check what is recorded as CAPTION_LENGTHS, and return it by numbers.

    Raises:
        InputError: it does not count so many captions by their ids.
    """
    is_sound = isinstance(recorded, dict) and all(
        _LENGTH.fullmatch(length) and type(count) is int and count > 0
        for length, count in recorded.items()
    )
    if not is_sound or sum(recorded.values()) != num_captions:
        raise InputError(
            f"{CAPTION_LENGTHS} are not those of {num_captions} captions: encode the shards again"
        )
    return {int(length): count for length, count in recorded.items()}
