"""Words of a text as BERT and ERNIE cut them, and the text that words came from.

Every Chinese character and every punctuation mark is a word of its own; white space separates the
others. Control and format characters are removed. Accents are removed and letters made lower case
where the vocabulary was made so.

White space around Chinese characters and marks is not kept, so `gap` decides what stood between two
words: a space between two words of letters, always, because nothing else could separate them;
none beside a Chinese character; beside a mark what its use asks for.

Source: the cutting is that of BERT (Devlin et al. 2019, arXiv:1810.04805), which ERNIE (Sun et al.
2019, arXiv:1904.09223) took over; the gaps are ours.
"""

import unicodedata
from functools import lru_cache
from typing import Literal

_CHINESE = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
"""First and last characters of the blocks of Chinese characters that BERT cuts apart. Kana and
Hangul are not among them."""
_SPACE_AFTER = frozenset(",.;:!?)]}%")
_SPACE_BEFORE = frozenset("([{#$@")
_IN_NUMBERS = frozenset(",.:")

_Class = Literal["letter", "chinese", "mark", "space", "removed"]


def words_of(text: str, *, lower_case: bool, strip_accents: bool) -> list[str]:
    """Return the words of a text, in order.

    Args:
        text: any text.
        lower_case: whether letters become lower case.
        strip_accents: whether accents are removed; this also decomposes Hangul and takes the marks
            of voiced kana away, as in BERT.
    """
    text = "".join(filter(_is_kept, text))
    if strip_accents:
        decomposed = unicodedata.normalize("NFD", text)
        text = "".join(one for one in decomposed if unicodedata.category(one) != "Mn")
    if lower_case:
        text = text.lower()
    words: list[str] = []
    is_open = False  # whether the last word goes on
    for character in text:
        kind = _class_of(character)
        if kind == "letter" and is_open:
            words[-1] += character
        elif kind in ("letter", "chinese", "mark"):
            words.append(character)
        is_open = kind == "letter"
    return words


def gap(before: str, after: str) -> str:
    """Return the space between two words, or nothing.

    Args:
        before: last character of the first word; empty if there is none.
        after: first character of the second word.
    """
    first, second = _class_of(before) if before else "space", _class_of(after)
    if "space" in (first, second) or "chinese" in (first, second):
        return ""
    if first == "letter":
        return " " if second == "letter" or after in _SPACE_BEFORE else ""
    if before not in _SPACE_AFTER or (before in _IN_NUMBERS and after.isdigit()):
        return ""
    return " " if second == "letter" or after in _SPACE_BEFORE else ""


def _is_kept(character: str) -> bool:
    return _class_of(character) != "removed"


@lru_cache(maxsize=1 << 16)
def _class_of(character: str) -> _Class:
    code, category = ord(character), unicodedata.category(character)
    if character in "\t\n\r" or category.startswith("Z"):
        return "space"
    if category.startswith("C") or code == 0xFFFD:
        return "removed"
    if any(first <= code <= last for first, last in _CHINESE):
        return "chinese"
    # BERT takes every ASCII character that is no letter or digit for a mark: $ and + too.
    if category.startswith("P") or (code < 0x80 and not character.isalnum()):
        return "mark"
    return "letter"
