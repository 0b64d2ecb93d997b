"""One token shard to write, and the record of a finished one."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipelines.encoding.views import ViewSettings
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import read_object
from ernie_vilg.storage.shard_manifest import (
    CAPTION_LENGTHS,
    MAX_CAPTIONS,
    MAX_TEXT_IDS,
    NUM_CAPTIONS,
    NUM_QUESTIONS,
    Shard,
    caption_lengths_of,
    shard_of,
    verify_shard,
)
from ernie_vilg.vocabulary import BEGIN_OF_TEXT_ID

CODES_FILE = "codes.json"
"""File beside the manifest with the number of uses of every code."""


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """Everything that the token shards of one folder depend on, and how fast they are made."""

    text_tokenizer: Path
    image_tokenizer: Path
    lineage: Mapping[str, str]
    """Lineage of the manifest."""
    views: ViewSettings
    grid_size: int
    codebook_size: int
    has_caption_lines: bool
    """Whether each line of a sample's txt is a caption of its own."""
    has_captions_twice: bool
    """Whether the JSON of image shards holds the captions of the txt too."""
    keep_pixels: bool
    precision: Literal["fp32", "bf16"]
    """Number format of the encoder."""
    max_differing_codes: float
    """Largest fraction of a shard's compared codes that bf16 may change."""
    device: Literal["cpu", "cuda"]
    """Device of the encoder; each process has chosen its GPU."""
    batch_size: int
    decode_threads: int


@dataclass(frozen=True, kw_only=True)
class EncodingTask:
    """One view of one image shard to encode."""

    source: Path
    """Folder of image shards."""
    shard: Shard
    """Image shard to encode."""
    view: int
    """Number of the view, from 0."""
    output: Path
    """File of the token shard."""
    record: Path
    """File that is written when the token shard is complete."""
    lock: Path
    """Empty file that is locked by the process that writes the token shard."""
    settings: EncodingSettings
    codes_folder: Path | None
    """Folder of token shards whose codes are taken over; None encodes the pictures."""
    codes_shard: Shard | None
    """Token shard there of the same view of the same image shard."""


@dataclass(kw_only=True)
class TokenCounts:
    """Counts of the captions and codes of token shards."""

    code_counts: np.ndarray
    """Number of uses of every code, int64 [codebook]."""
    caption_lengths: Counter[int] = field(default_factory=Counter)
    """Number of captions by their number of ids, end of text included."""
    pictures_by_captions: Counter[int] = field(default_factory=Counter)
    """Number of pictures by their number of captions."""
    ids_by_captions: Counter[int] = field(default_factory=Counter)
    """Number of text ids of all captions, without special ones, by the picture's captions."""
    max_text_ids: int = 0
    """Most ids of all captions of a picture, separators included."""
    num_questions: int = 0
    """Number of captions that are a question and its answer."""
    compared_codes: int = 0
    """Number of codes that were computed in bf16 and in fp32."""
    differing_codes: int = 0
    """Number of those that differ."""

    def add_captions(self, captions: list[list[int]]) -> None:
        """Count the captions of a picture, given their ids; a begin of text counts as one."""
        self.num_questions += sum(BEGIN_OF_TEXT_ID in ids for ids in captions)
        lengths = [len(ids) for ids in captions]
        self.caption_lengths.update(length + 1 for length in lengths)
        self.pictures_by_captions[len(captions)] += 1
        self.ids_by_captions[len(captions)] += sum(lengths)
        self.max_text_ids = max(self.max_text_ids, sum(lengths) + len(captions) - 1)

    def add_codes(self, codes: np.ndarray) -> None:
        """Count codes, integers of any shape."""
        self.code_counts += np.bincount(codes.ravel(), minlength=len(self.code_counts))

    def merge(self, other: "TokenCounts") -> None:
        """Add the counts of another shard."""
        self.code_counts += other.code_counts
        for name in ("caption_lengths", "pictures_by_captions", "ids_by_captions"):
            getattr(self, name).update(getattr(other, name))
        self.max_text_ids = max(self.max_text_ids, other.max_text_ids)
        self.num_questions += other.num_questions
        self.compared_codes += other.compared_codes
        self.differing_codes += other.differing_codes

    def text_settings(self) -> dict[str, Any]:
        """Return the manifest's settings about the captions."""
        # A visit reads one of the captions, each as often, so a picture counts with their mean.
        mean_ids = sum(Fraction(ids, count) for count, ids in self.ids_by_captions.items())
        return {
            "max_text_tokens": max(self.caption_lengths) - 1,  # without special ids, as the next
            "num_text_tokens": round(mean_ids),
            NUM_CAPTIONS: sum(self.caption_lengths.values()),
            MAX_CAPTIONS: max(self.pictures_by_captions),
            MAX_TEXT_IDS: self.max_text_ids,
            CAPTION_LENGTHS: _with_text_keys(self.caption_lengths),
            **({NUM_QUESTIONS: self.num_questions} if self.num_questions else {}),
        }

    def as_json(self) -> dict[str, Any]:
        """Return the counts for a record."""
        return {
            CAPTION_LENGTHS: _with_text_keys(self.caption_lengths),
            "pictures_by_captions": _with_text_keys(self.pictures_by_captions),
            "ids_by_captions": _with_text_keys(self.ids_by_captions),
            "max_text_ids": self.max_text_ids,
            "num_questions": self.num_questions,
            "compared_codes": self.compared_codes,
            "differing_codes": self.differing_codes,
            "code_counts": self.code_counts.tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class EncodedShard:
    """A finished token shard."""

    shard: Shard
    counts: TokenCounts


def new_counts(codebook_size: int) -> TokenCounts:
    """Return counts of nothing."""
    return TokenCounts(code_counts=np.zeros(codebook_size, np.int64))


def read_record(task: EncodingTask) -> EncodedShard | None:
    """Return the record of a token shard; None if there is none.

    Raises:
        InputError: the record has another form, or the shard does not match it.
    """
    if not task.record.is_file():
        return None
    content = read_object(task.record)
    name = str(task.record)
    shard = shard_of(content.get("shard"), name)
    verify_shard(task.output.parent, shard)
    return EncodedShard(shard=shard, counts=_counts_of(content, shard, task.settings, name))


def _counts_of(
    content: Mapping[str, Any], shard: Shard, settings: EncodingSettings, name: str
) -> TokenCounts:
    pictures = _numbers(content.get("pictures_by_captions"), name)
    ids = _numbers(content.get("ids_by_captions"), name)
    num_captions = sum(count * number for count, number in pictures.items())
    lengths = caption_lengths_of(content.get(CAPTION_LENGTHS), num_captions)
    codes = content.get("code_counts")
    names = ("max_text_ids", "num_questions", "compared_codes", "differing_codes")
    others = [content.get(name) for name in names]
    is_sound = (
        isinstance(codes, list)
        and len(codes) == settings.codebook_size
        and _are_natural([*codes, *others])
        and sum(codes) == shard.samples * settings.grid_size**2
        and sum(pictures.values()) == shard.samples
        and pictures.keys() == ids.keys()
    )
    if not is_sound:
        raise InputError(f"{name} does not count the captions and codes of its shard")
    return TokenCounts(
        code_counts=np.array(codes, np.int64),
        caption_lengths=Counter(lengths),
        pictures_by_captions=Counter(pictures),
        ids_by_captions=Counter(ids),
        max_text_ids=content["max_text_ids"],
        num_questions=content["num_questions"],
        compared_codes=content["compared_codes"],
        differing_codes=content["differing_codes"],
    )


def _numbers(recorded: Any, name: str) -> dict[int, int]:
    """Return recorded counts by their number."""
    is_sound = isinstance(recorded, dict) and all(
        key.isascii() and key.isdecimal() and key != "0" for key in recorded
    )
    if not is_sound or not _are_natural(recorded.values()):
        raise InputError(f"{name} has no counts of captions")
    return {int(key): value for key, value in recorded.items()}


def _are_natural(values: Iterable[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _with_text_keys(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(key): counts[key] for key in sorted(counts)}
