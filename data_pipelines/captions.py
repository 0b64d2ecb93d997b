"""Captions: cleaning of raw ones, and reading of those in image shards.

White space of any kind, line breaks included, becomes one space, and so do U+2581, SentencePiece's
space, and U+241F, `QUESTION_END`. Control and format characters, such as zero-width ones and those
that reverse the direction of writing, are removed, except the two joiners that some scripts and
emoji need.

A text about a picture is a caption, or a question and its answer with `QUESTION_END` between them,
which a caption never has.
"""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.rejections import Reason, RejectedError
from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import (
    KEY,
    LocalFolder,
    OpenShard,
    Sample,
    open_shard,
)
from ernie_vilg.storage.shard_manifest import Manifest
from ernie_vilg.system.progress import progress
from ernie_vilg.vocabulary import QUESTION_END

_JOINERS = "\u200c\u200d"
_SPACE_OF_PIECES = "\u2581"


def read_captions(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the captions of a folder of image shards in order, all of a picture one after another.

    A question and its answer are two texts. One shard is open at a time, and progress is shown.

    Args:
        folder: folder of the shards.
        manifest: the folder's manifest.

    Raises:
        InputError: a shard differs from the manifest, or a sample has no caption.
    """
    is_several = has_caption_lines(manifest)
    total = len(manifest.shards)
    for shard in progress(manifest.shards, total=total, what="read captions", unit="shards"):
        opened = open_shard(LocalFolder(str(folder)), shard)
        with opened.file:
            for index in range(shard.samples):
                for caption in captions_at(opened, index, is_several=is_several):
                    yield from caption.split(QUESTION_END)


def has_caption_lines(manifest: Manifest) -> bool:
    """Return whether each line of a sample's txt is a caption of its own.

    So it is in shards of `launch/build_shards.py captions=all`; in other shards the whole txt is
    one caption.
    """
    return manifest.settings.get("captions") == "all"


def captions_at(opened: OpenShard, index: int, *, is_several: bool) -> list[str]:
    """Return the captions of a sample of an open shard, cleaned; no other member is read.

    Raises:
        DamagedSampleError: as for `captions_of`; or the sample cannot be used.
    """
    if (problem := opened.problem(index)) is not None:
        raise problem
    sample = {KEY: opened.key(index).encode()}
    if "txt" in opened.shard.members:
        sample["txt"] = opened.member("txt", index)
    return captions_of(sample, opened.location, is_several=is_several)


def captions_of(sample: Sample, location: str, *, is_several: bool) -> list[str]:
    """Return the captions of an image shard's sample, cleaned.

    Shards of `launch/build_shards.py` hold clean captions; others may not.

    Args:
        sample: the sample.
        location: name of its shard for messages.
        is_several: whether each line is a caption, as `has_caption_lines` says.

    Raises:
        DamagedSampleError: the captions are missing or not UTF-8, or one is empty after cleaning.
    """
    try:
        text = sample["txt"]
        parts = text.split(b"\n") if is_several else [text]
        return [clean_text(part.decode(), max_characters=len(part)) for part in parts]
    except (KeyError, UnicodeDecodeError, RejectedError) as error:
        raise DamagedSampleError(
            "caption",
            f"sample {sample[KEY].decode()!r} of {location} has no caption in UTF-8 in its txt"
            f"{', or an empty line' if is_several else ''}: build the image shards again",
        ) from error


def text_of(caption: str, question: str | None) -> str:
    """Return a caption, or a question and its answer, as one text.

    Args:
        caption: the caption, or the answer.
        question: the question; None for a caption.
    """
    if question is None:
        return without_question_end(caption)
    return without_question_end(question) + QUESTION_END + without_question_end(caption)


def clean_text(text: str, *, max_characters: int) -> str:
    """Return a text like `clean_caption`: a caption, or a question and its answer.

    Raises:
        RejectedError: a part is empty after cleaning, or the text has more than `max_characters`.
    """
    question, end, answer = text.partition(QUESTION_END)
    if not end:
        return clean_caption(text, max_characters=max_characters)
    parts = [clean_caption(part, max_characters=max_characters) for part in (question, answer)]
    return _of_length(QUESTION_END.join(parts), max_characters)


def clean_caption(caption: str, *, max_characters: int) -> str:
    """Return the caption on one line and without control characters.

    Raises:
        RejectedError: the cleaned caption is empty, or has more than `max_characters`.
    """
    spaced = without_question_end(caption).replace(_SPACE_OF_PIECES, " ")
    # Printable characters are neither control nor format characters, nor space but " ".
    visible = spaced if spaced.isprintable() else _without_controls(spaced)
    cleaned = " ".join(visible.split()).strip(" " + _JOINERS)
    if not cleaned:
        raise RejectedError(Reason.EMPTY_CAPTION, f"{caption!r:.100}")
    return _of_length(cleaned, max_characters)


def _of_length(cleaned: str, max_characters: int) -> str:
    if len(cleaned) > max_characters:
        raise RejectedError(
            Reason.CAPTION_TOO_LONG, f"{len(cleaned)} characters, at most {max_characters}"
        )
    return cleaned


def without_question_end(caption: str) -> str:
    """Return a text with a space between a question and its answer, as captions have it."""
    return caption.replace(QUESTION_END, " ")


def _without_controls(caption: str) -> str:
    return "".join(
        " " if character.isspace() else character
        for character in caption
        if character.isspace() or _is_kept(character)
    )


def _is_kept(character: str) -> bool:
    # Cc: control characters. Cf: format characters, such as those that reverse the direction.
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf")
