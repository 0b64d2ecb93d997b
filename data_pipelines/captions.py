"""Captions: cleaning of raw ones, and reading of those in image shards.

White space of any kind, line breaks included, becomes one space, and so does U+2581,
SentencePiece's space. Control and format characters, such as zero-width ones and those that reverse
the direction of writing, are removed, except the two joiners that some scripts and emoji need.
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.rejections import Reason, RejectedError
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import KEY, Sample, read_shard
from ernie_vilg.storage.shard_manifest import Manifest
from ernie_vilg.system.progress import progress

_JOINERS = "\u200c\u200d"
_SPACE_OF_PIECES = "\u2581"


def read_captions(folder: Path, manifest: Manifest, *, max_captions: int | None) -> Iterator[str]:
    """Yield the captions of a folder of image shards in order.

    Args:
        folder: folder of the shards.
        manifest: the folder's manifest.
        max_captions: number of captions to yield, at even distances; None yields all.

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
                yield caption_of(sample, str(folder / shard.file))
            position += 1


def caption_of(sample: Sample, location: str) -> str:
    """Return the caption of an image shard's sample, cleaned.

    Shards of `launch/build_shards.py` hold clean captions; others may not.

    Args:
        sample: the sample.
        location: name of its shard for messages.

    Raises:
        DamagedSampleError: the caption is missing, not UTF-8, or empty after cleaning.
    """
    try:
        text = sample["txt"]
        return clean_caption(text.decode(), max_characters=len(text))
    except (KeyError, UnicodeDecodeError, RejectedError) as error:
        raise DamagedSampleError(
            "caption",
            f"sample {sample[KEY].decode()!r} of {location} has no caption in UTF-8 in its txt: "
            "build the image shards again",
        ) from error


def is_taken(position: int, *, wanted: int, total: int) -> bool:
    """Return true if a position is one of `wanted` positions at even distances out of `total`."""
    wanted = min(wanted, total)
    return (position + 1) * wanted // total > position * wanted // total


def clean_caption(caption: str, *, max_characters: int) -> str:
    """Return the caption on one line and without control characters.

    Raises:
        RejectedError: the cleaned caption is empty, or has more than `max_characters`.
    """
    spaced = caption.replace(_SPACE_OF_PIECES, " ")
    visible = "".join(
        " " if character.isspace() else character
        for character in spaced
        if character.isspace() or _is_kept(character)
    )
    cleaned = " ".join(visible.split()).strip(" " + _JOINERS)
    if not cleaned:
        raise RejectedError(Reason.EMPTY_CAPTION, f"{caption!r:.100}")
    if len(cleaned) > max_characters:
        raise RejectedError(
            Reason.CAPTION_TOO_LONG, f"{len(cleaned)} characters, at most {max_characters}"
        )
    return cleaned


def _is_kept(character: str) -> bool:
    # Cc: control characters. Cf: format characters, such as those that reverse the direction.
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf")
