"""Rules for the words of a caption: their number, and the number of nouns.

jieba's dictionary splits a caption and tags each word. A word has at least one letter or digit:
punctuation and spaces are none. A noun has a tag of jieba that begins with n (n common noun, nr
person, ns place, nt organisation, nz other name, ng morpheme, nrt and nrfg transcribed name), or vn
(verbal noun) or an (adjectival noun). Words in Latin letters (eng) are not nouns: most of them are
file names. The dictionary tags some short nouns by another use, such as 花 (flower; to spend);
`NOUNS_TAGGED_OTHERWISE` has those that name things seen in pictures. A word of two or more letters
that the dictionary does not have is a noun, as new words mostly are names.

Source: section 3.2.1 of arXiv:2112.15283 (fewer than 15 words, at least one noun; its segmenter is
not stated); jieba's tags follow ICTCLAS (https://github.com/fxsj/jieba).
"""

import functools
from collections.abc import Callable, Iterator

from data_pipelines.curation.extras import import_extra
from data_pipelines.curation.verdicts import CaptionRule, Verdict, broken
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import Rules

Tagger = Callable[[str], list[tuple[str, str]]]
"""Function that splits a text into words with their tags."""

NOUNS_TAGGED_OTHERWISE = frozenset(
    {
        *"鸟车糖帽桶花树窗塔杯碗盘米鼓包表根松土村鹰月锁锯",
        "警察",
        "相机",
        "侦探",
        "双眼",
        "人像",
        "包裹",
    }
)
"""Nouns that jieba's dictionary tags as a verb, a measure or a morpheme."""


def word_rules(rules: Rules) -> Iterator[CaptionRule]:
    """Yield the rule for words if it is on.

    Raises:
        InputError: rjieba is not installed.
    """
    if rules.max_words is None and rules.min_nouns == 0:
        return
    setting = "max_words" if rules.max_words is not None else "min_nouns"
    tagger = import_extra("rjieba", extra="curation", setting=setting).tag
    yield functools.partial(
        check_words, tagger=tagger, max_words=rules.max_words, min_nouns=rules.min_nouns
    )


def check_words(caption: str, *, tagger: Tagger, max_words: int | None, min_nouns: int) -> Verdict:
    """Reject captions with too many words or too few nouns."""
    words, nouns = count_words(tagger(caption))
    measures = {"words": words, "nouns": nouns}
    if max_words is not None and words > max_words:
        detail = f"{words} words, at most {max_words}"
        return Verdict(measures=measures, rejection=broken(Reason.TOO_MANY_WORDS, detail))
    if nouns < min_nouns:
        detail = f"{nouns} nouns, at least {min_nouns}"
        return Verdict(measures=measures, rejection=broken(Reason.TOO_FEW_NOUNS, detail))
    return Verdict(measures=measures)


def count_words(tagged: list[tuple[str, str]]) -> tuple[int, int]:
    """Return how many words and how many nouns there are.

    Args:
        tagged: words and punctuation, each with jieba's tag.
    """
    words = nouns = 0
    for word, tag in tagged:
        # An unknown word has the tag of punctuation, x.
        if any(map(str.isalnum, word)):
            words += 1
            nouns += (
                tag[0] == "n"
                or tag in ("vn", "an")
                or word in NOUNS_TAGGED_OTHERWISE
                or (tag == "x" and len(word) > 1 and word.isalpha())
            )
    return words, nouns
