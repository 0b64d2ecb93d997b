"""What lies in a folder of shards: the manifest that is written beside them.

A tar file cannot say how many samples it should hold, nor whether a byte of it changed, and
WebDataset's reader drops the rest of a damaged shard without a word. The manifest can: per
shard it records the number of samples, the size, the SHA-256 and the member set; for all of
them the settings that made them and the lineage, that is the hashes of what they were made
with.

Source: ours; shards are plain WebDataset tars (https://github.com/webdataset/webdataset).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ernie_vilg.files import read_json, sha256_of_file, sha256_of_json, write_json

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1

ShardKind = Literal["image", "token"]


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
        ValueError: there is no manifest, or it is of another kind or version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {FILE_NAME}: name a folder written by launch/build_shards.py "
            "(image shards) or launch/encode_shards.py (token shards)"
        )
    content = read_json(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {content.get('format_version')}, this code reads "
            f"{FORMAT_VERSION}: build the shards again"
        )
    if content["kind"] != kind:
        raise ValueError(
            f"{folder} holds {content['kind']} shards where {kind} shards are needed: "
            "launch/encode_shards.py makes token shards from image shards"
        )
    return Manifest(
        kind=content["kind"],
        shards=tuple(
            Shard(**{**shard, "members": tuple(shard["members"])}) for shard in content["shards"]
        ),
        settings=content["settings"],
        lineage=content["lineage"],
    )


def verify_shard(folder: Path, shard: Shard) -> None:
    """Check a shard's size and hash against the manifest.

    Raises:
        ValueError: the file is missing, of another size or of other content.
    """
    path = folder / shard.file
    if not path.is_file():
        raise ValueError(f"shard {path} is missing: copy it again or build the shards again")
    size = path.stat().st_size
    if size != shard.bytes:
        raise ValueError(
            f"shard {path} has {size} bytes where the manifest says {shard.bytes}: copy it again"
        )
    if sha256_of_file(path) != shard.sha256:
        raise ValueError(
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
