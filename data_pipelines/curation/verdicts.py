"""Results of the rules for a caption, a picture, or a pair."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data_pipelines.rejections import Reason, RejectedError

Subject = TypeVar("Subject")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Measured values, and the first rule that was broken."""

    measures: Mapping[str, Any] = field(default_factory=dict)
    """Measured values by their column in the metadata (`data_pipelines.metadata.COLUMNS`)."""
    rejection: RejectedError | None = None
    """The broken rule; None if all hold."""


@dataclass(frozen=True, kw_only=True)
class CaptionVerdict(Verdict):
    """The same for a caption, which the rules may also transform."""

    caption: str
    """Caption after the transforms."""
    transforms: tuple[str, ...] = ()
    """Names of the transforms that changed it, such as "traditional_to_simplified"."""


CaptionRule = Callable[[str], Verdict]
"""A rule that is on: it measures a clean caption and judges it."""


def broken(reason: Reason, detail: str) -> RejectedError:
    """Return the rejection of a broken rule.

    Args:
        reason: code of the rule.
        detail: measured value and threshold, such as "17 words, at most 14".
    """
    return RejectedError(reason, detail)


def first_broken(rules: Iterable[Callable[[Subject], Verdict]], subject: Subject) -> Verdict:
    """Apply rules in order until one is broken.

    Returns:
        the measures of the rules that were applied, and the broken one's rejection.
    """
    measures: dict[str, Any] = {}
    for rule in rules:
        verdict = rule(subject)
        measures.update(verdict.measures)
        if verdict.rejection is not None:
            return Verdict(measures=measures, rejection=verdict.rejection)
    return Verdict(measures=measures)
