"""Rules that models decide: text in pictures, similarity, NSFW, watermarks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.curation.models.loading import (
    Detector,
    load_pair_scorer,
    load_picture_scorer,
    load_text_detector,
)
from data_pipelines.curation.models.scorers import PictureScorer, without_repeats
from data_pipelines.curation.pictures import LoadedPicture, PictureRule
from data_pipelines.curation.verdicts import Verdict, broken
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import CurationConfig, Rules

Score = Callable[[Sequence[Image.Image], Sequence[str]], NDArray[np.float32]]
"""Function from pictures and captions to one number per pair, float32 [pairs]."""


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """A threshold for the score of a model."""

    column: str
    """Column of the score in the metadata."""
    reason: Reason
    score: Score
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, score: float) -> Verdict:
        """Judge one score."""
        measures = {self.column: score}
        if self.at_least is not None and not score >= self.at_least:  # NaN is rejected
            detail = f"{self.column} {score:.3f}, at least {self.at_least:g}"
        elif self.at_most is not None and not score <= self.at_most:
            detail = f"{self.column} {score:.3f}, at most {self.at_most:g}"
        else:
            return Verdict(measures=measures)
        return Verdict(measures=measures, rejection=broken(self.reason, detail))


def text_rules(rules: Rules) -> Iterator[PictureRule]:
    """Yield the rule for text in pictures, if it is on.

    Raises:
        InputError: its package is missing.
    """
    detector, at_most = load_text_detector(rules), rules.max_text_area
    if detector is not None and at_most is not None:
        yield lambda picture: check_text(picture, detector=detector, at_most=at_most)


def check_text(picture: LoadedPicture, *, detector: Detector, at_most: float) -> Verdict:
    """Reject pictures of which text covers too much."""
    area = detector.area(picture.image)
    if area <= at_most:
        return Verdict(measures={"text_area": area})
    detail = f"text on {area:.1%} of the picture, at most {at_most:.1%}"
    rejection = broken(Reason.TEXT_IN_PICTURE, detail)
    return Verdict(measures={"text_area": area}, rejection=rejection)


def pair_rules(config: CurationConfig, rules: Rules) -> Iterator[PairRule]:
    """Yield the rules for pairs that are on, in the order of `Rules`, with their models loaded.

    Raises:
        InputError: a model or its package is missing.
    """
    pairs = load_pair_scorer(config, rules)
    if pairs is not None:
        yield PairRule(
            column="similarity",
            reason=Reason.SIMILARITY,
            score=pairs.score,
            at_least=rules.min_similarity,
        )
    nsfw = load_picture_scorer(config, rules, "max_nsfw")
    if nsfw is not None:
        yield PairRule(
            column="nsfw", reason=Reason.NSFW, score=of_pictures(nsfw), at_most=rules.max_nsfw
        )
    watermark = load_picture_scorer(config, rules, "max_watermark")
    if watermark is not None:
        yield PairRule(
            column="watermark",
            reason=Reason.WATERMARK,
            score=of_pictures(watermark),
            at_most=rules.max_watermark,
        )


def of_pictures(scorer: PictureScorer) -> Score:
    """Return the scores of pairs by their pictures alone; one in several pairs is scored once."""

    def score(images: Sequence[Image.Image], captions: Sequence[str]) -> NDArray[np.float32]:
        different, places = without_repeats(images)
        return scorer.score(different)[places]

    return score


def judge_pairs(
    rules: Sequence[PairRule], images: Sequence[Image.Image], captions: Sequence[str]
) -> list[Verdict]:
    """Judge pairs by rules in order; a rule sees only the pairs that none has rejected yet.

    Args:
        rules: rules that are on.
        images: RGB pictures.
        captions: their captions.
    """
    verdicts = [Verdict() for _ in captions]
    for rule in rules:
        left = [place for place, verdict in enumerate(verdicts) if verdict.rejection is None]
        scores = rule.score([images[place] for place in left], [captions[place] for place in left])
        for place, score in zip(left, scores, strict=True):
            judged = rule.judge(float(score))
            verdicts[place] = Verdict(
                measures={**verdicts[place].measures, **judged.measures},
                rejection=judged.rejection,
            )
    return verdicts
