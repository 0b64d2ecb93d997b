"""Codes and text ids of a token shard: their form, their range, and their counts."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.audit.checks import Tallies
from data_pipelines.encoding.task import TokenCounts, new_counts
from data_pipelines.encoding.token_shard import CODES, TEXT
from data_pipelines.encoding.views import ViewSettings
from ernie_vilg.data.batches.captions import has_answer
from ernie_vilg.data.batches.npy import parse_npy
from ernie_vilg.data.shards.open_shards import OpenShard
from ernie_vilg.errors import InputError
from ernie_vilg.vocabulary import (
    BEGIN_OF_TEXT_ID,
    END_OF_TEXT_ID,
    FIRST_BYTE_ID,
    NUM_BYTES,
    NUM_SPECIAL_IDS,
)


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """Settings of token shards that their content must agree with."""

    grid_size: int
    codebook_size: int
    vocab_size: int
    views: ViewSettings
    """Parts of the pictures that were encoded."""
    has_questions: bool = False
    """Whether texts may be a question and its answer."""


@dataclass(kw_only=True)
class TokenFindings:
    """Counts of the codes and ids of token shards."""

    counts: TokenCounts
    """Counts that encoding records too."""
    num_pictures: int = 0
    """Number of samples whose codes were counted."""
    num_ids: int = 0
    """Number of text ids, without special ones."""
    num_byte_ids: int = 0
    """Number of those that are single bytes of characters without a piece."""
    num_captions_with_bytes: int = 0
    """Number of captions that have such a character."""
    unknown_characters: Counter[str] = field(default_factory=Counter)
    """Number of uses of every character without a piece."""

    def merge(self, other: "TokenFindings") -> None:
        """Add the counts of another shard."""
        self.counts.merge(other.counts)
        self.num_pictures += other.num_pictures
        self.num_ids += other.num_ids
        self.num_byte_ids += other.num_byte_ids
        self.num_captions_with_bytes += other.num_captions_with_bytes
        self.unknown_characters.update(other.unknown_characters)


def read_tokens(opened: OpenShard, settings: TokenSettings, tallies: Tallies) -> TokenFindings:
    """Check and count the codes and ids of every sample."""
    found = TokenFindings(counts=new_counts(settings.codebook_size))
    grids = []
    for at in range(opened.shard.samples):
        codes, problem = codes_of(opened, at, settings)
        tallies["codes"].add([problem] if problem else [])
        if codes is not None:
            grids.append(codes)
        ids, problem = text_of(opened, at, settings)
        tallies["text_ids"].add([problem] if problem else [])
        if ids is not None:
            _count_text(found, ids)
    if grids:
        found.counts.add_codes(np.stack(grids))
    found.num_pictures = len(grids)
    return found


def codes_of(opened: OpenShard, at: int, settings: TokenSettings) -> tuple[np.ndarray | None, str]:
    """Return a sample's codes, uint16 [grid, grid], or None and the reason."""
    try:
        codes = parse_npy(opened.member(CODES, at))
    except (KeyError, InputError) as error:
        return None, f"the codes of {opened.describe(at)} cannot be read ({error})"
    shape = (settings.grid_size, settings.grid_size)
    if codes.dtype != np.uint16 or codes.shape != shape:
        found = f"{codes.dtype} {list(codes.shape)}"
        return None, f"the codes of {opened.describe(at)} are {found}, not uint16 {list(shape)}"
    if int(codes.max()) >= settings.codebook_size:
        largest = f"{int(codes.max())}, the codebook has {settings.codebook_size}"
        return None, f"the codes of {opened.describe(at)} go up to {largest}"
    return codes, ""


def text_of(opened: OpenShard, at: int, settings: TokenSettings) -> tuple[np.ndarray | None, str]:
    """Return a sample's text ids, int32 [ids], or None and the reason.

    Several captions stand one after another, separated by END_OF_TEXT_ID. A question and its answer
    have BEGIN_OF_TEXT_ID between them.
    """
    try:
        ids = parse_npy(opened.member(TEXT, at))
    except (KeyError, InputError) as error:
        return None, f"the text ids of {opened.describe(at)} cannot be read ({error})"
    if ids.dtype != np.int32 or ids.ndim != 1:
        found = f"{ids.dtype} {list(ids.shape)}"
        return None, f"the text ids of {opened.describe(at)} are {found}, not int32 [ids]"
    is_special = ids == END_OF_TEXT_ID
    if settings.has_questions:
        is_special |= ids == BEGIN_OF_TEXT_ID
    words = ids[~is_special]
    if words.size and not (words.min() >= NUM_SPECIAL_IDS and words.max() < settings.vocab_size):
        found = f"{words.min()} to {words.max()}"
        return None, (
            f"the text ids of {opened.describe(at)} go from {found}, the vocabulary from "
            f"{NUM_SPECIAL_IDS} to {settings.vocab_size - 1}"
        )
    captions = split_captions(ids)
    if len(captions) > 1 and not all(caption.size for caption in captions):
        return None, f"{opened.describe(at)} has a caption without ids among others"
    sound = (has_answer(each[None], np.array([each.size]))[0] for each in captions if each.size)
    if not all(sound):
        return None, f"{opened.describe(at)} has a question or an answer without ids"
    return ids, ""


def split_captions(ids: np.ndarray) -> list[np.ndarray]:
    """Return the ids of every caption of a sample.

    Args:
        ids: int32 [ids], captions separated by END_OF_TEXT_ID.
    """
    ends = np.flatnonzero(ids == END_OF_TEXT_ID)
    if not ends.size:
        return [ids]
    return [part[part != END_OF_TEXT_ID] for part in np.split(ids, ends)]


def _count_text(found: TokenFindings, ids: np.ndarray) -> None:
    captions = split_captions(ids)
    found.counts.add_captions([caption.tolist() for caption in captions])
    for text in captions:
        caption = text[text != BEGIN_OF_TEXT_ID]
        found.num_ids += len(caption)
        is_byte = caption < FIRST_BYTE_ID + NUM_BYTES
        if is_byte.any():
            found.num_captions_with_bytes += 1
            found.num_byte_ids += int(is_byte.sum())
            found.unknown_characters.update(_characters(caption, is_byte))


def _characters(caption: np.ndarray, is_byte: np.ndarray) -> Iterator[str]:
    """Yield the characters that are written in bytes."""
    # A space between runs keeps bytes of different characters apart.
    values = np.where(is_byte, caption - FIRST_BYTE_ID, ord(" ")).astype(np.uint8)
    for character in values.tobytes().decode("utf-8", "replace"):
        if character != " ":
            yield character
