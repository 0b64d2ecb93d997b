"""One caption of several: which one a visit of a picture reads, and where it is among the ids.

A token sample keeps the captions of its picture in one array, separated by the id of the end of
text. The position of a visit and the seed choose one of them, each with the same probability: a
resumed run and every layout choose the same, and a picture's visits in later epochs, which stand at
other positions, choose anew. Of several questions about a picture, each with its answer, one is
chosen in the same way.

Source: the mix of SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom number
generators, OOPSLA 2014); numbers below a bound by multiplication (Lemire 2019, arXiv:1805.10941).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.storage.shard_manifest import (
    MAX_CAPTIONS,
    MAX_TEXT_IDS,
    NUM_QUESTIONS,
    Manifest,
)
from ernie_vilg.system.seeds import seed_named
from ernie_vilg.vocabulary import (
    BEGIN_OF_TEXT_ID,
    END_OF_TEXT_ID,
)

MOST_IDS_AT_ONCE = 1024
"""Longest array of a sample's text that is decoded together with others."""

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mixed_bits(seed: int, positions: np.ndarray) -> np.ndarray:
    """Return 64 random bits per position.

    Args:
        seed: start of the sequence of bits, from 0 to below 2^64.
        positions: from 0, int64 [samples].

    Returns:
        the position-th numbers of SplitMix64's sequence, uint64 [samples].
    """
    bits = (positions.astype(np.uint64) + np.uint64(1)) * _STEP + np.uint64(seed)
    bits = (bits ^ (bits >> np.uint64(30))) * _FACTORS[0]
    bits = (bits ^ (bits >> np.uint64(27))) * _FACTORS[1]
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


def chosen_captions(seed: int, positions: np.ndarray, num_captions: np.ndarray) -> np.ndarray:
    """Return which of its captions each visit reads.

    Args:
        seed: seed of the order of samples.
        positions: positions of the visits in the training sequence, int64 [samples].
        num_captions: number of captions of each visited picture, at least 1, int64 [samples].

    Returns:
        indices of captions, from 0, int64 [samples].
    """
    upper = mixed_bits(seed_named(f"captions {seed}"), positions) >> np.uint64(32)
    chosen: np.ndarray = (upper * num_captions.astype(np.uint64)) >> np.uint64(32)
    return chosen.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class ChosenText:
    """The chosen captions of some samples."""

    ids: np.ndarray
    """First ids of each caption, integer [samples, ids]; after its last id stands anything."""
    counts: np.ndarray
    """Number of ids of each caption, which may be more, int64 [samples]."""
    is_end: np.ndarray
    """True where an id of the sample's text separates two captions, bool [samples, ids]."""
    has_empty: np.ndarray
    """True where a caption of the sample has no ids, bool [samples]."""

    def has_shape(self, max_captions: np.ndarray) -> np.ndarray:
        """Return whether the captions are none too many and none empty, bool [samples].

        Args:
            max_captions: most captions of each sample, int64 [samples].
        """
        shaped: np.ndarray = (self.is_end.sum(axis=1) < max_captions) & ~self.has_empty
        return shaped


@dataclass(frozen=True, kw_only=True)
class CaptionChoice:
    """The choice among the captions of a run's data sets."""

    seed: int
    """Seed of the order of samples."""
    max_captions: tuple[int, ...]
    """Most captions of a picture, by data set."""
    has_questions: tuple[bool, ...]
    """Whether texts may be a question and its answer, by data set."""
    is_read_whole: tuple[bool, ...]
    """Whether all ids of a sample are needed, not just those of the first slots, by data set: of
    several captions, or with questions."""
    max_ids: int
    """Most ids of all captions of a picture that are decoded together with other samples; 0 where
    every picture has one caption, and no question."""

    def choose(
        self, ids: np.ndarray, counts: np.ndarray, positions: np.ndarray, *, num_ids: int
    ) -> ChosenText:
        """Choose a caption of each sample.

        Args:
            ids: ids of all captions of each sample, integer [samples, ids]; after a sample's last
                id stands anything.
            counts: number of ids of each sample, at most `ids.shape[1]`, int64 [samples].
            positions: positions of the samples in the training sequence, int64 [samples].
            num_ids: number of ids wanted of each caption.
        """
        is_within = np.arange(ids.shape[1]) < counts[:, None]
        is_end = is_within & (ids == END_OF_TEXT_ID)
        chosen = chosen_captions(self.seed, positions, is_end.sum(axis=1) + 1)
        # Captions ended before each id; a separator belongs to the caption that it ends.
        ordinals = np.cumsum(is_end, axis=1) - is_end
        is_chosen = is_within & ~is_end & (ordinals == chosen[:, None])
        firsts = is_chosen.argmax(axis=1)
        taken = np.minimum(firsts[:, None] + np.arange(num_ids), ids.shape[1] - 1)
        return ChosenText(
            ids=np.take_along_axis(ids, taken, axis=1),
            counts=is_chosen.sum(axis=1),
            is_end=is_end,
            has_empty=_has_empty(is_end, counts),
        )

    def choose_one(
        self, ids: np.ndarray, position: int, max_captions: int, name: str
    ) -> np.ndarray:
        """Choose a caption of one sample.

        Args:
            ids: ids of all its captions, integer [ids].
            position: position of the sample in the training sequence.
            max_captions: most captions that it may have.
            name: name of the sample for messages.

        Returns:
            the ids of the caption, integer [ids].

        Raises:
            DamagedSampleError: a caption has no ids, or there are too many captions.
        """
        num_captions, has_shape = 1, False
        if len(ids):
            counts, positions = np.array([len(ids)]), np.array([position])
            chosen = self.choose(ids[None], counts, positions, num_ids=len(ids))
            num_captions = int(chosen.is_end.sum()) + 1
            has_shape = bool(chosen.has_shape(np.array([max_captions]))[0])
        if not has_shape:
            raise DamagedSampleError(
                "text_shape",
                f"{name} has {num_captions} captions between ends of text where the manifest "
                f"allows {max_captions}, none of them empty: encode the shards again",
            )
        only: np.ndarray = chosen.ids[0, : int(chosen.counts[0])]
        return only


def caption_choice(manifests: Sequence[Manifest], seed: int) -> CaptionChoice:
    """Return the choice among the captions of some data sets."""
    max_captions = tuple(max_captions_of(manifest) for manifest in manifests)
    has_questions = tuple(bool(manifest.settings.get(NUM_QUESTIONS, 0)) for manifest in manifests)
    is_read_whole = tuple(
        count > 1 or asks for count, asks in zip(max_captions, has_questions, strict=True)
    )
    max_ids = [
        manifest.settings.get(MAX_TEXT_IDS, MOST_IDS_AT_ONCE)
        for manifest, is_whole in zip(manifests, is_read_whole, strict=True)
        if is_whole
    ]
    return CaptionChoice(
        seed=seed,
        max_captions=max_captions,
        has_questions=has_questions,
        is_read_whole=is_read_whole,
        max_ids=min(max(max_ids, default=0), MOST_IDS_AT_ONCE),
    )


def max_captions_of(manifest: Manifest) -> int:
    """Return the most captions of a picture of token shards; older shards have one each."""
    return max(1, int(manifest.settings.get(MAX_CAPTIONS, 1)))


def has_answer(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return whether each text is a caption, or one question and one answer with ids each.

    Args:
        ids: ids of each text, integer [texts, ids]; after its last id stands anything.
        counts: number of ids of each text, at most `ids.shape[1]`, int64 [texts].

    Returns:
        bool [texts].
    """
    places = np.arange(ids.shape[1])
    is_begin = (ids == BEGIN_OF_TEXT_ID) & (places < counts[:, None])
    is_inside = (places > 0) & (places < counts[:, None] - 1)
    sound: np.ndarray = (is_begin.sum(axis=1) <= 1) & ~(is_begin & ~is_inside).any(axis=1)
    return sound


def check_answer(ids: np.ndarray, name: str) -> None:
    """Refuse a text that is neither a caption nor a question with its answer.

    Args:
        ids: all ids of the text, integer [ids].
        name: name of the sample for messages.

    Raises:
        DamagedSampleError: begins of text stand elsewhere than once between two parts with ids.
    """
    if len(ids) and not has_answer(ids[None], np.array([len(ids)]))[0]:
        raise DamagedSampleError(
            "text_shape",
            f"{name} has the text ids {ids.tolist()!s:.200} where a question, the id "
            f"{BEGIN_OF_TEXT_ID} and an answer are needed: encode the shards again",
        )


def _has_empty(is_end: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return whether a caption of a sample has no ids, bool [samples]."""
    is_last = np.arange(is_end.shape[1]) == counts[:, None] - 1
    empty: np.ndarray = (counts == 0) | is_end[:, 0] | (is_end & is_last).any(axis=1)
    empty |= (is_end[:, 1:] & is_end[:, :-1]).any(axis=1)
    return empty
