"""Figures of a text tokenizer on captions that it was not trained on."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ernie_vilg.storage.caption_lengths import num_longer, slots_that_fit
from ernie_vilg.text_tokenizer.tokenizer import TextTokenizer
from ernie_vilg.vocabulary import FIRST_BYTE_ID, NUM_RESERVED_IDS, UNKNOWN_ID

TEXT_LENGTHS = (16, 32, 64, 128, 256)
"""Values of `model.text_length` whose share of whole captions is reported."""
_PERCENTILES = (50, 95, 99)


@dataclass(kw_only=True)
class _Counts:
    captions: int = 0
    characters: int = 0
    ids: int = 0
    unknown_ids: int = 0
    byte_ids: int = 0
    byte_characters: int = 0
    captions_with_bytes: int = 0
    lengths: Counter[int] = field(default_factory=Counter)


def measure_text_tokenizer(tokenizer: TextTokenizer, captions: Iterable[str]) -> dict[str, Any]:
    """Encode captions and count.

    Args:
        tokenizer: text tokenizer.
        captions: captions that it was not trained on.

    Returns:
        figures by key, as JSON values; empty without captions. Lengths are in ids, end of text
        included, as in the manifest of token shards. Characters are those of
        `TextTokenizer.comparable`, without spaces.
    """
    counts = _Counts()
    for caption in captions:
        _count(counts, tokenizer, caption)
    if not counts.characters:
        return {}
    lengths, num_captions = counts.lengths, counts.captions
    mean = sum(length * count for length, count in lengths.items()) / num_captions
    return {
        "captions": num_captions,
        "characters": counts.characters,
        "character_coverage": 1 - counts.byte_characters / counts.characters,
        "captions_with_byte_ids": counts.captions_with_bytes / num_captions,
        "byte_ids": counts.byte_ids / counts.ids,
        "unknown_ids": counts.unknown_ids / counts.ids,
        "ids_per_character": counts.ids / counts.characters,
        "length_mean": mean,
        **{f"length_p{part}": slots_that_fit(lengths, 1 - part / 100) for part in _PERCENTILES},
        "length_max": max(lengths),
        "fits_text_length": {
            str(slots): 1 - num_longer(lengths, slots) / num_captions for slots in TEXT_LENGTHS
        },
    }


def _count(counts: _Counts, tokenizer: TextTokenizer, caption: str) -> None:
    ids = tokenizer.encode(caption)
    values = [text_id - FIRST_BYTE_ID for text_id in ids]
    in_bytes = [value for value in values if 0 <= value < NUM_RESERVED_IDS - FIRST_BYTE_ID]
    # A character's first byte is below 0x80 or from 0xC0. A space is no character here.
    firsts = [value for value in in_bytes if value != ord(" ") and not 0x80 <= value < 0xC0]
    counts.captions += 1
    counts.characters += len("".join(tokenizer.comparable(caption).split()))
    counts.ids += len(ids)
    counts.unknown_ids += ids.count(UNKNOWN_ID)
    counts.byte_ids += len(in_bytes)
    counts.byte_characters += len(firsts)
    counts.captions_with_bytes += bool(in_bytes)
    counts.lengths[len(ids) + 1] += 1
