"""From a shard's name to its samples, with every byte accounted for.

A shard is checked against the manifest (size, SHA-256, number of samples, member set) before
any of its samples is used. Nothing is unpickled or extracted to disk.

Source: ours; the layout of members is WebDataset's (key, dot, extension).
"""

import io
import tarfile
from functools import lru_cache
from pathlib import Path

from ernie_vilg.manifest import Manifest, Shard, verify_shard

KEY = "__key__"
Sample = dict[str, bytes]
"""A sample's members by extension, and its key under "__key__"."""


def read_shard(folder: Path, shard: Shard) -> list[Sample]:
    """Read all samples of a shard into memory.

    Args:
        folder: the manifest's folder.
        shard: the shard's entry in the manifest.

    Returns:
        the samples in the order of the file.

    Raises:
        ValueError: the file is missing or differs from the manifest; the message names the
            file and what differs.
    """
    verify_shard(folder, shard)
    path = folder / shard.file
    samples: dict[str, Sample] = {}
    # Opened uncompressed ("r:"): a compressed file under the name .tar is refused.
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise ValueError(f"shard {path}: member {member.name!r} is not a regular file")
            key, _, extension = member.name.partition(".")
            sample = samples.setdefault(key, {KEY: key.encode()})
            if extension in sample:
                raise ValueError(f"shard {path}: member {member.name!r} occurs twice")
            sample[extension] = content.read()
    _check_members(path, shard, samples)
    return list(samples.values())


def _check_members(path: Path, shard: Shard, samples: dict[str, Sample]) -> None:
    if len(samples) != shard.samples:
        raise ValueError(
            f"shard {path} holds {len(samples)} samples where the manifest says "
            f"{shard.samples}: build the shards again"
        )
    expected = {KEY, *shard.members}
    for key, sample in samples.items():
        if set(sample) != expected:
            raise ValueError(
                f"shard {path}: sample {key!r} has members {sorted(set(sample) - {KEY})} where "
                f"the manifest says {list(shard.members)}: build the shards again"
            )


class ShardCache:
    """The samples of the shards used last, kept in memory."""

    def __init__(self, folder: Path, manifest: Manifest, max_shards: int = 4) -> None:
        """Prepare an empty cache.

        Args:
            folder: where the shards are.
            manifest: the folder's manifest.
            max_shards: shards kept; at least the `shuffle_block_shards` of the order that
                the samples are asked for in, or shards are read again and again.
        """
        self._folder = folder
        self._manifest = manifest
        self._read = lru_cache(maxsize=max_shards)(self._read_shard)

    def sample(self, shard_index: int, index: int) -> Sample:
        """Return one sample, reading its shard if it is not at hand.

        Raises:
            ValueError: the shard differs from the manifest.
        """
        return self._read(shard_index)[index]

    def _read_shard(self, shard_index: int) -> list[Sample]:
        return read_shard(self._folder, self._manifest.shards[shard_index])
