"""Reasons why a row of raw pairs gives no sample."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Reason of a rejection: the row is faulty, a rule rejects it, or it resembles another one."""

    # Faulty rows, which count towards `max_faulty_fraction`.
    NOT_JSON = "not_json"
    """The line is not a JSON object, or too long to be read."""
    NOT_A_ROW = "not_a_row"
    """The line of a table has another number of fields, or is not UTF-8."""
    MISSING_FIELD = "missing_field"
    """The picture or the caption is missing or is not a string."""
    NO_SUCH_PICTURE = "no_such_picture"
    """A caption names the id of a picture that the source does not list."""
    EMPTY_CAPTION = "empty_caption"
    """The caption is empty after cleaning."""
    CAPTION_TOO_LONG = "caption_too_long"
    """The caption has more characters than allowed."""
    UNSAFE_PATH = "unsafe_path"
    """The picture's path or key is absolute or leaves the source."""
    DUPLICATE_KEY = "duplicate_key"
    """An earlier row is the same picture with the same caption, or a tar repeats a member."""
    MISSING_IMAGE = "missing_image"
    """There is no such file or member."""
    UNREADABLE_IMAGE = "unreadable_image"
    """The file is not a JPEG, PNG or WebP, or it is damaged."""
    IMAGE_TOO_LARGE = "image_too_large"
    """The image has more pixels or bytes than allowed."""
    FAILED_DOWNLOAD = "failed_download"
    """img2dataset did not get the picture."""
    DAMAGED_SHARD = "damaged_shard"
    """The rest of a tar file cannot be read."""

    # Rules of curation.
    NOT_TRANSLATED = "not_translated"
    TOO_FEW_CHARACTERS = "too_few_characters"
    TOO_MANY_CHARACTERS = "too_many_characters"
    SPECIAL_CHARACTERS = "special_characters"
    HAN_SHARE = "han_share"
    LANGUAGE = "language"
    TOO_MANY_WORDS = "too_many_words"
    TOO_FEW_NOUNS = "too_few_nouns"
    ANIMATED = "animated"
    TOO_SMALL = "too_small"
    ASPECT_RATIO = "aspect_ratio"
    SINGLE_COLOUR = "single_colour"
    TEXT_IN_PICTURE = "text_in_picture"
    SIMILARITY = "similarity"
    NSFW = "nsfw"
    WATERMARK = "watermark"

    # Relations between rows.
    FURTHER_CAPTION = "further_caption"
    """With captions=first: an earlier row has the same picture."""
    DUPLICATE_PICTURE = "duplicate_picture"
    NEAR_DUPLICATE_PICTURE = "near_duplicate_picture"
    DUPLICATE_TEXT = "duplicate_text"
    NEAR_DUPLICATE_TEXT = "near_duplicate_text"
    IN_EVALUATION_SET = "in_evaluation_set"


FAULTS = frozenset(
    {
        Reason.NOT_JSON,
        Reason.NOT_A_ROW,
        Reason.MISSING_FIELD,
        Reason.NO_SUCH_PICTURE,
        Reason.EMPTY_CAPTION,
        Reason.CAPTION_TOO_LONG,
        Reason.UNSAFE_PATH,
        Reason.DUPLICATE_KEY,
        Reason.MISSING_IMAGE,
        Reason.UNREADABLE_IMAGE,
        Reason.IMAGE_TOO_LARGE,
        Reason.DAMAGED_SHARD,
    }
)
"""Reasons of faulty rows. FAILED_DOWNLOAD is none of them: every crawl has many."""


class RejectedError(Exception):
    """A row cannot be used; its reader turns the error into a rejection."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A row that gives no pair."""

    row: int
    """Position among the rows of its part, from 0."""
    place: str
    """Place of the row for people, such as "captions.jsonl line 12"."""
    reason: Reason
    detail: str
    """Wrong value, for people."""


def count_reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Return the number of rejections by reason, most frequent first."""
    return dict(Counter(str(rejection.reason) for rejection in rejections).most_common())
