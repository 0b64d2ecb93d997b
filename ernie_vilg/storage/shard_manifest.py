"""The manifest of a folder of shards, written beside them.

A tar file does not record how many samples it should hold, nor the hash of its content, and
WebDataset's reader silently drops the rest of a damaged shard. The manifest records, for each
shard, the number of samples, the size, the SHA-256 and the member set; for all of them the settings
that made them and the lineage, that is the hashes of their sources. Each shard has an index file
beside it with the positions of its samples; the shard's entry holds the index's size and hash.

Version 1 had no indexes. Its shards are still read, and keep their digest.

Source: ours; shards are plain WebDataset tars (https://github.com/webdataset/webdataset).
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file, sha256_of_json, write_json
from ernie_vilg.storage.json_files import MOST_BYTES, parse_json, read_json
from ernie_vilg.storage.locations import is_remote, shown
from ernie_vilg.storage.remote import DEFAULT_LIMITS, RemoteFolder, TransferLimits

FILE_NAME = "manifest.json"
CAPTION_LENGTHS = "caption_lengths"
"""Setting of token shards: number of captions by their length in ids, end of text included."""
NUM_CAPTIONS = "num_captions"
"""Setting of token shards: number of captions of all pictures; older shards have one of each."""
MAX_CAPTIONS = "max_captions_per_picture"
"""Setting of token shards: most captions of a picture."""
MAX_TEXT_IDS = "max_text_ids_per_picture"
"""Setting of token shards: most ids of a picture's captions, the separators between them
included."""
NUM_QUESTIONS = "num_questions"
"""Setting of token shards: number of texts that are a question and its answer; absent without."""
_LENGTH = re.compile(r"[1-9][0-9]{0,8}")
FORMAT_VERSION = 2
MAX_INDEX_BYTES = 64 << 20
"""Largest index of a shard; one of a million samples has 40 MB."""

ShardKind = Literal["image", "token"]

KNOWN_MEMBERS = ("codes.npy", "jpeg", "jpg", "json", "png", "text.npy", "txt", "webp")
"""Extensions of members that are read; nothing else is decoded, and nothing unpickled."""

_FILE_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INDEX_SUFFIX = ".index"
_MIN_SAMPLE_BYTES = 512
"""Size of the shortest sample in a tar file: one header."""
_MAX_SETTINGS = {
    "image_size": 1 << 14,
    "grid_size": 1 << 12,
    "codebook_size": 1 << 16,
    "text_vocab_size": 1 << 24,
    "max_text_tokens": 1 << 31,
    "num_text_tokens": 1 << 62,
    NUM_CAPTIONS: 1 << 62,
    MAX_CAPTIONS: 1 << 20,
    MAX_TEXT_IDS: 1 << 31,
    NUM_QUESTIONS: 1 << 62,
}
"""Largest values of the settings that determine memory."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of a data set: its name, size and hash."""

    file: str
    """Name within the manifest's folder."""
    bytes: int
    """File size."""
    sha256: str
    """Hash of the whole file, 64 hexadecimal digits."""


@dataclass(frozen=True, kw_only=True)
class Shard(StoredFile):
    """One tar file and its required content."""

    samples: int
    """Number of samples."""
    members: tuple[str, ...]
    """Extensions that every sample has, sorted, such as ("json", "png", "txt")."""
    index: StoredFile | None = None
    """File with the positions of the samples; None in a manifest of version 1."""

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The shard's own file, and its index if it has one."""
        return (self,) if self.index is None else (self, self.index)


_FILE_KEYS = {"file", "bytes", "sha256"}
_SHARD_KEYS = {*_FILE_KEYS, "samples", "members"}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set: its shards in order, their settings and their sources."""

    kind: ShardKind
    """"image": pictures and captions; "token": image codes and text ids."""
    shards: tuple[Shard, ...]
    """Shards in the order of their samples."""
    settings: Mapping[str, Any]
    """Settings that made the samples, such as {"image_size": 64, "crop": "center"}."""
    lineage: Mapping[str, str]
    """SHA-256 of each source of the samples, by name: for token shards "text_tokenizer",
    "image_tokenizer", "crop_settings" and "image_shards"."""

    @property
    def num_samples(self) -> int:
        """Number of samples in all shards."""
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
        limits: limits of the transfer from a URL.

    Raises:
        InputError: the location is neither a folder nor such a URL, there is no manifest, or it is
            of another kind or version or has a wrong entry.
        ImportError: the library that reads the URL is not installed.
        OSError: the URL cannot be read.
    """
    if not is_remote(location):
        return read_manifest(Path(location), kind)
    name = shown(location)
    try:
        text = RemoteFolder(location, limits).read(FILE_NAME, most_bytes=MOST_BYTES)
    except FileNotFoundError:
        raise InputError(_no_manifest(name)) from None
    return _manifest_of(parse_json(text, f"{name}/{FILE_NAME}"), name, kind)


def _no_manifest(name: str) -> str:
    return (
        f"{name} has no {FILE_NAME}: name a folder written by launch/build_shards.py "
        "(image shards) or launch/encode_shards.py (token shards)"
    )


def _manifest_of(content: Any, name: str, kind: ShardKind) -> Manifest:
    """Check the content of a manifest file and return it."""
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"{name}/{FILE_NAME} has format_version {version!r:.20}, this code reads 1 to "
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
            f"{name} holds {content['kind']:.20} shards where {kind} shards are needed: "
            "launch/encode_shards.py makes token shards from image shards"
        )
    _check_settings(content["settings"], name)
    shards = tuple(
        shard_of(entry, f"{name}/{FILE_NAME}", has_index=version > 1) for entry in content["shards"]
    )
    _check_unique(shards, name)
    return Manifest(
        kind=content["kind"],
        shards=shards,
        settings=content["settings"],
        lineage=content["lineage"],
    )


def _check_settings(settings: Mapping[str, Any], name: str) -> None:
    """Refuse impossible sizes, before memory is allocated for them."""
    for key, most in _MAX_SETTINGS.items():
        value = settings.get(key, 1)
        if type(value) is not int or not 0 <= value <= most:
            raise InputError(
                f"{name}/{FILE_NAME} has settings.{key}={value!r:.40}, which is no whole number up "
                f"to {most}: restore the manifest or build the shards again"
            )


def shard_of(entry: Any, name: str, *, has_index: bool = True) -> Shard:
    """Check a shard's JSON entry and return it.

    Args:
        entry: a shard as `dataclasses.asdict` returns it.
        name: name of the file that holds the entry, for messages.
        has_index: whether the entry describes an index.

    Raises:
        InputError: the entry has another form.
    """
    problem = _problem_of(entry, has_index=has_index)
    if problem is not None:
        raise InputError(
            f"{name} has a shard with {problem}: restore the manifest or build the shards again"
        )
    index = StoredFile(**entry["index"]) if has_index else None
    return Shard(**{**entry, "members": tuple(entry["members"]), "index": index})


def _problem_of(entry: Any, *, has_index: bool) -> str | None:
    """Return the fault of an entry in words, None if there is none."""
    keys = _SHARD_KEYS | {"index"} if has_index else _SHARD_KEYS
    problem = _problem_of_file(entry, keys)
    if problem is not None:
        return problem
    file, size = entry["file"], entry["bytes"]
    problem = _problem_of_samples(entry["samples"], size) or _problem_of_members(entry["members"])
    if problem is None and has_index:
        problem = _problem_of_file(entry["index"], _FILE_KEYS)
        if problem is None and entry["index"]["bytes"] > min(size, MAX_INDEX_BYTES):
            problem = f"bytes={entry['index']['bytes']}, which is more than {size} bytes need"
        problem = problem and f"an index of {problem}"
    return problem and f"file={file} and {problem}"


def _problem_of_file(entry: Any, keys: set[str]) -> str | None:
    if not isinstance(entry, dict) or entry.keys() != keys:
        return f"other entries than {', '.join(sorted(keys))}"
    file = entry["file"]
    if not isinstance(file, str) or len(file) > 200 or not _FILE_NAME.fullmatch(file):
        return f"file={file!r:.80}, which is no plain file name (letters, digits, . _ -, no '..')"
    # A bool is an int to Python: true would pass for 1.
    if type(entry["bytes"]) is not int or not 1 <= entry["bytes"] < 1 << 62:
        return f"file={file} and bytes={entry['bytes']!r:.40}, which is no positive whole number"
    if not isinstance(entry["sha256"], str) or not _SHA256.fullmatch(entry["sha256"]):
        return f"file={file} and sha256={entry['sha256']!r:.80}, which is not 64 hexadecimal digits"
    return None


def _problem_of_samples(samples: Any, size: int) -> str | None:
    if type(samples) is not int or samples < 1:
        return f"samples={samples!r:.40}, which is no positive whole number"
    if samples * _MIN_SAMPLE_BYTES > size:
        return (
            f"samples={samples}, more than its {size} bytes can hold (a sample takes "
            f"{_MIN_SAMPLE_BYTES} or more)"
        )
    return None


def _problem_of_members(members: Any) -> str | None:
    if not isinstance(members, list) or not members:
        return f"members={members!r:.80}, which is no list of extensions"
    unknown = [member for member in members if member not in KNOWN_MEMBERS]
    if unknown:
        known = ", ".join(KNOWN_MEMBERS)
        return f"members of extension {unknown[0]!r:.40}, where only {known} are read"
    if sorted(set(members)) != members:
        return f"members={members!r:.80}, which are not sorted or not different"
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
    """Check the size and hash of a shard and its index against the manifest.

    Raises:
        InputError: a file is missing, or its size or content differs.
    """
    for stored in shard.files:
        path = folder / stored.file
        if not path.is_file():
            raise InputError(f"shard {path} is missing: copy it again or build the shards again")
        size = path.stat().st_size
        if size != stored.bytes:
            raise InputError(
                f"shard {path} has {size} bytes where the manifest says {stored.bytes}: copy it "
                "again"
            )
        if sha256_of_file(path) != stored.sha256:
            raise InputError(
                f"shard {path} differs from the manifest's SHA-256: it is damaged or was replaced; "
                "copy it again"
            )


def describe_file(path: Path) -> StoredFile:
    """Return the size and hash of a file."""
    return StoredFile(file=path.name, bytes=path.stat().st_size, sha256=sha256_of_file(path))


def index_path(shard_path: Path) -> Path:
    """Return the path of a shard's index."""
    return shard_path.with_name(f"{shard_path.name}{_INDEX_SUFFIX}")


def _as_json(manifest: Manifest) -> dict[str, Any]:
    # A data set without indexes keeps its digest of version 1, which runs have recorded.
    version = 1 if any(shard.index is None for shard in manifest.shards) else FORMAT_VERSION
    shards = [asdict(shard) for shard in manifest.shards]
    if version == 1:
        for shard in shards:
            del shard["index"]
    return {
        "format_version": version,
        "kind": manifest.kind,
        "samples": manifest.num_samples,
        "settings": dict(manifest.settings),
        "lineage": dict(manifest.lineage),
        "shards": shards,
    }


def caption_lengths_of(recorded: Any, num_captions: int) -> dict[int, int]:
    """Check a recorded CAPTION_LENGTHS and return it with whole numbers as keys.

    Raises:
        InputError: it does not count `num_captions` captions by their length.
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
