"""The captions of image shards, as text tokenizer training reads them.

Source: ours.
"""

from collections.abc import Iterator
from pathlib import Path

from ernie_vilg.data.damage import DamagedSampleError
from ernie_vilg.data.reader import KEY, Sample, read_shard
from ernie_vilg.manifest import Manifest
from ernie_vilg.progress import progress


def read_captions(folder: Path, manifest: Manifest, *, max_captions: int | None) -> Iterator[str]:
    """Yield the captions of a folder of image shards in order.

    Args:
        folder: where the shards are.
        manifest: the folder's manifest.
        max_captions: how many to yield, taken at even distances; None yields all.

    Raises:
        InputError: a shard differs from the manifest, or a sample has no caption.
    """
    wanted = manifest.num_samples if max_captions is None else max_captions
    position = 0
    shards = progress(
        manifest.shards, total=len(manifest.shards), what="read captions", unit="shards"
    )
    for shard in shards:
        for sample in read_shard(folder, shard):
            if is_taken(position, wanted=wanted, total=manifest.num_samples):
                yield caption_of(sample, f"{folder / shard.file}")
            position += 1


def caption_of(sample: Sample, location: str) -> str:
    """Return the caption of an image shard's sample.

    Args:
        sample: the sample.
        location: its shard's name for messages.

    Raises:
        DamagedSampleError: it has none, or one that is not UTF-8.
    """
    try:
        return sample["txt"].decode()
    except (KeyError, UnicodeDecodeError) as error:
        raise DamagedSampleError(
            "caption",
            f"sample {sample[KEY].decode()!r} of {location} has no txt in UTF-8: build the image "
            "shards again",
        ) from error


def is_taken(position: int, *, wanted: int, total: int) -> bool:
    """Tell whether a position is among `wanted` ones at even distances out of `total`."""
    wanted = min(wanted, total)
    return (position + 1) * wanted // total > position * wanted // total
