"""Words and nouns of captions as crawls have them, by the real dictionary."""

import pytest
import rjieba

from data_pipelines.curation.words import check_words, count_words
from data_pipelines.rejections import Reason
from tests.data_pipelines.curation.verdicts import reason_and_detail

FIFTEEN_WORDS = "红 黄 蓝 绿 黑 白 紫 灰 粉 橙 金 银 铜 铁 锡"


@pytest.mark.parametrize(
    ("caption", "words", "nouns"),
    [
        ("北京故宫的红墙", 3, 2),  # 北京故宫 的 红墙
        ("一只猫在沙发上睡觉", 6, 2),  # 一只 猫 在 沙发 上 睡觉
        ("研究，工作！", 2, 2),  # verbal nouns; punctuation is no word
        ("iPhone手机壳", 3, 2),  # Latin letters are a word and no noun
        ("IMG 2034.jpg", 2, 0),
        ("树上的鸟", 3, 1),  # the dictionary tags 鸟 as a morpheme
        ("盛开的花", 3, 1),  # and 花 as a verb
        ("警察", 1, 1),  # and 警察 as a verb
        ("青柠", 1, 1),  # not in the dictionary
        ("好漂亮啊", 3, 0),
        ("立即购买", 2, 0),
        ("20230817", 1, 0),
        ("★★★ …… ——", 0, 0),
        ("", 0, 0),
    ],
)
def test_words_have_letters_and_nouns_name_things(caption: str, words: int, nouns: int) -> None:
    assert count_words(rjieba.tag(caption)) == (words, nouns)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("北京故宫的红墙", None),
        (FIFTEEN_WORDS.removesuffix(" 锡"), None),
        (FIFTEEN_WORDS, (Reason.TOO_MANY_WORDS, "15 words, at most 14")),
        ("点击放大", (Reason.TOO_FEW_NOUNS, "0 nouns, at least 1")),
    ],
    ids=["short", "14 words", "15 words", "no noun"],
)
def test_fewer_than_15_words_and_one_noun_are_kept(
    caption: str, expected: tuple[Reason, str] | None
) -> None:
    verdict = check_words(caption, tagger=rjieba.tag, max_words=14, min_nouns=1)

    assert reason_and_detail(verdict) == expected
    assert verdict.measures.keys() == {"words", "nouns"}
