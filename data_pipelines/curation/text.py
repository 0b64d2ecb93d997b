"""Rules for the characters of a caption: their number, special ones, and the share of Chinese.

The paper wants "no special characters" and does not define them. Our reading: a character is
special unless it is

- a letter or mark of any script (Unicode categories L*, Mn, Mc), but for the mathematical alphabets
  that imitate fonts (compatibility decomposition <font>),
- a decimal digit, or a number that is written as a letter, such as 〇 and Ⅲ (Nd, Nl),
- a space, or one of the two joiners that some scripts need,
- common punctuation: the marks of GB/T 15834-2011 in half and full width, & % + #, and degrees.

Special are therefore emoji, dingbats and box drawing (So), currency (Sc), mathematical operators
but + and ~ (Sm), other ASCII symbols such as _ | @ * = $, circled numbers (No), enclosing marks
(Me), private use, surrogates and unassigned code points (Co, Cs, Cn). Common punctuation three
times in a row is special too, as in "!!!", but for full stops, of which six make an ellipsis.

Source: section 3.2.1 of arXiv:2112.15283; GB/T 15834-2011, "General rules for punctuation"; Unicode
Standard Annex 44, general categories.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator

from data_pipelines.curation.scripts import HAN
from data_pipelines.curation.verdicts import CaptionRule, Verdict, broken
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import Rules

COMMON_PUNCTUATION = frozenset(
    " \u200c\u200d"
    # GB/T 15834-2011: full width, then what is typed instead of it
    "。，、；：？！“”‘’『』「」（）［］〔〕【】《》〈〉…—–·～－／．＂＇"
    ".,;:?!\"'()[]~-/―‐‧•・"
    # Signs of everyday text
    "&%+#＆％＋＃°℃℉"
)
"""Characters that are neither letters nor digits, and not special."""

_COMMON_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl"})
_REPEATED = re.compile(r"([^\w\s.])\1\1|\.{7}")
_HAN_CHARACTER = re.compile(f"[{HAN}]")


def character_rules(rules: Rules) -> Iterator[CaptionRule]:
    """Yield the rules for characters that are on, in the order of `Rules`."""
    if rules.min_characters > 0 or rules.max_characters is not None:
        yield functools.partial(
            check_length, at_least=rules.min_characters, at_most=rules.max_characters
        )
    if rules.special_characters == "refuse":
        yield check_special_characters
    if rules.min_han_share is not None:
        yield functools.partial(check_han_share, at_least=rules.min_han_share)


def check_length(caption: str, *, at_least: int, at_most: int | None) -> Verdict:
    """Reject captions with too few or too many characters, spaces included."""
    count = len(caption)
    if count < at_least:
        detail = f"{count} characters, at least {at_least}"
        return Verdict(rejection=broken(Reason.TOO_FEW_CHARACTERS, detail))
    if at_most is not None and count > at_most:
        detail = f"{count} characters, at most {at_most}"
        return Verdict(rejection=broken(Reason.TOO_MANY_CHARACTERS, detail))
    return Verdict()


def check_special_characters(caption: str) -> Verdict:
    """Reject captions with special characters."""
    found = special_characters(caption)
    if found is None:
        return Verdict()
    name = unicodedata.name(found[0], "no name")
    detail = f"{found} (U+{ord(found[0]):04X}, {name})"
    return Verdict(rejection=broken(Reason.SPECIAL_CHARACTERS, detail))


def special_characters(caption: str) -> str | None:
    """Return the first special character, or else the first mark with its repetitions, or None."""
    for character in caption:
        if _is_special(character):
            return character
    repeated = _REPEATED.search(caption)
    return repeated[0] if repeated else None


@functools.lru_cache(maxsize=1 << 16)
def _is_special(character: str) -> bool:
    if unicodedata.category(character) in _COMMON_CATEGORIES:
        return unicodedata.decomposition(character).startswith("<font>")
    return character not in COMMON_PUNCTUATION


def check_han_share(caption: str, *, at_least: float) -> Verdict:
    """Reject captions with too small a share of Chinese characters among their letters."""
    share = han_share(caption)
    measures = {"han_share": share}
    if share >= at_least:
        return Verdict(measures=measures)
    detail = f"{share:.3f} of the letters are Chinese, at least {at_least:g}"
    return Verdict(measures=measures, rejection=broken(Reason.HAN_SHARE, detail))


def han_share(caption: str) -> float:
    """Return the share of Chinese characters among a caption's letters; 0 without letters."""
    letters = sum(map(str.isalpha, caption))
    return len(_HAN_CHARACTER.findall(caption)) / letters if letters else 0.0
