"""Writing of samples to tar files, with the same bytes for the same samples.

Source: the layout of members is WebDataset's (https://github.com/webdataset/webdataset).
"""

from collections.abc import Iterable
from pathlib import Path

from webdataset.writer import TarWriter

from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.data.shards.shard_index import SAFE_KEY
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.storage.shard_manifest import Shard

_OWNER = "ernie_vilg"


def shard_name(prefix: str, index: int) -> str:
    """Return a shard's file name, such as "images-00000.tar"."""
    return f"{prefix}-{index:05d}.tar"


def write_shard(path: Path, samples: Iterable[Sample], *, members: tuple[str, ...]) -> Shard | None:
    """Write samples as one tar file, and its index beside it.

    Owner, mode and time of every member are fixed, so the file depends only on the samples.

    Args:
        path: file to write.
        samples: samples with a key and exactly these members.
        members: extensions, such as ("json", "png", "txt").

    Returns:
        the manifest's entry, or None, without a file, if there is no sample.
    """
    count = 0
    with path.open("wb") as file, _open_tar(file) as tar:
        for sample in samples:
            key = sample[KEY]
            assert SAFE_KEY.fullmatch(key), key
            assert set(sample) == {KEY, *members}, sorted(sample)
            tar.write({**sample, KEY: key.decode()})
            count += 1
    if count == 0:
        path.unlink()
        return None
    return describe_shard(path, samples=count, members=members)


def _open_tar(file: object) -> TarWriter:
    return TarWriter(file, encoder=False, mtime=0, user=_OWNER, group=_OWNER)
