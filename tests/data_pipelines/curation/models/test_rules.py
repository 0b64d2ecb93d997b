import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.curation.curator import Curator
from data_pipelines.curation.models import loading
from data_pipelines.curation.models.rules import PairRule, judge_pairs, of_pictures
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import CurationConfig, Rules


class Brightness:
    """Scores a picture by its red; counts what it sees."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def score(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        self.seen.append(len(images))
        return np.array([np.asarray(image)[0, 0, 0] / 100 for image in images], np.float32)


def red(value: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (value, 0, 0))


def lengths(images: Sequence[Image.Image], captions: Sequence[str]) -> NDArray[np.float32]:
    return np.array([len(caption) / 10 for caption in captions], np.float32)


def test_rules_reject_in_order_and_measure_only_what_is_left() -> None:
    scorer = Brightness()
    rules = [
        PairRule(column="similarity", reason=Reason.SIMILARITY, score=lengths, at_least=0.3),
        PairRule(column="nsfw", reason=Reason.NSFW, score=of_pictures(scorer), at_most=0.5),
    ]
    images = [red(20), red(60), red(60), red(50)]
    verdicts = judge_pairs(rules, images, ["123", "1", "12345", "1234"])
    assert [verdict.rejection and verdict.rejection.reason for verdict in verdicts] == [
        None, Reason.SIMILARITY, Reason.NSFW, None,
    ]  # fmt: skip
    assert [sorted(verdict.measures) for verdict in verdicts] == [
        ["nsfw", "similarity"], ["similarity"], ["nsfw", "similarity"], ["nsfw", "similarity"],
    ]  # fmt: skip
    assert verdicts[1].rejection is not None
    assert verdicts[1].rejection.detail == "similarity 0.100, at least 0.3"
    assert verdicts[2].rejection is not None
    assert verdicts[2].rejection.detail == "nsfw 0.600, at most 0.5"
    assert scorer.seen == [3]


def test_picture_of_several_pairs_is_scored_once() -> None:
    scorer, image = Brightness(), red(60)
    assert of_pictures(scorer)([image, red(10), image], ["a", "b", "c"]).tolist() == pytest.approx(
        [0.6, 0.1, 0.6]
    )
    assert scorer.seen == [2]


def test_score_that_is_no_number_is_rejected() -> None:
    for limits in ({"at_least": -1.0}, {"at_most": 1.0}):
        rule = PairRule(column="nsfw", reason=Reason.NSFW, score=lengths, **limits)
        assert rule.judge(math.nan).rejection is not None


def test_without_rules_nothing_is_loaded_and_every_pair_is_kept() -> None:
    curator = Curator(CurationConfig(), Rules())
    (verdict,) = curator.check_pairs([red(1)], ["a"])
    assert verdict.rejection is None
    assert verdict.measures == {}


class Upper:
    """Translates to capitals, but for words with x."""

    why_none = "it has an x"

    def translate(self, captions: Sequence[str]) -> list[str | None]:
        return [None if "x" in caption else caption.upper() for caption in captions]


def test_curator_judges_the_translation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_model_translator", lambda *_: Upper())
    monkeypatch.setattr(loading, "_model_folder", lambda *_: None)
    config = CurationConfig(translation_model="/models/translation")
    curator = Curator(config, Rules(translate=True, max_characters=3))
    kept, long, none = curator.check_captions(["abc", "abcd", "axc"])
    assert (kept.caption, kept.transforms, kept.rejection) == ("ABC", ("translated",), None)
    assert long.rejection is not None
    assert (long.caption, long.rejection.reason) == ("ABCD", Reason.TOO_MANY_CHARACTERS)
    assert none.rejection is not None
    assert (none.caption, none.rejection.reason) == ("axc", Reason.NOT_TRANSLATED)
    assert none.rejection.detail == "it has an x"
    assert curator.check_caption("abc") == kept
