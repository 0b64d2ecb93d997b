"""Captions as crawls have them, and what the rules for characters say about each."""

import pytest

from data_pipelines.curation.text import (
    check_han_share,
    check_length,
    check_special_characters,
    han_share,
)
from data_pipelines.rejections import Reason
from tests.data_pipelines.curation.verdicts import reason_and_detail


@pytest.mark.parametrize(
    "caption",
    [
        "北京故宫的红墙",
        "列奥纳多·达·芬奇《蒙娜丽莎》（1503年）",
        "“春风又绿江南岸”……",
        "【正品】耐克运动鞋，男款——42码",
        "iPhone 15 Pro手机壳",
        "二〇二一年的雪，气温－3℃",
        "A dog's bone, 50% off (new) & shiny + clean, #3",
        "臺灣風景",
        "富士山の桜",
        "Café à Paris",
        "नमस्ते",  # combining vowel signs
        "می‌خواهم",  # a zero-width non-joiner
        "第Ⅲ章",
        "加载中......",
    ],
)
def test_letters_digits_and_common_punctuation_are_not_special(caption: str) -> None:
    assert check_special_characters(caption).rejection is None


@pytest.mark.parametrize(
    ("caption", "detail"),
    [
        ("¥199包邮 ★★★", "¥ (U+00A5, YEN SIGN)"),
        ("五星好评★★★", "★ (U+2605, BLACK STAR)"),
        ("IMG_2034.jpg", "_ (U+005F, LOW LINE)"),
        ("故宫 | 百度百科", "| (U+007C, VERTICAL LINE)"),
        ("笑脸😀", "😀 (U+1F600, GRINNING FACE)"),
        ("家庭👨\u200d👩\u200d👧", "👨 (U+1F468, MAN)"),
        ("1️⃣号楼", "⃣ (U+20E3, COMBINING ENCLOSING KEYCAP)"),
        ("─────标题─────", "─ (U+2500, BOX DRAWINGS LIGHT HORIZONTAL)"),
        ("乱码\ufffd\ufffd", "\ufffd (U+FFFD, REPLACEMENT CHARACTER)"),
        ("图标\ue001", "\ue001 (U+E001, no name)"),
        ("未分配\U000e0fff", "\U000e0fff (U+E0FFF, no name)"),
        ("①号门", "① (U+2460, CIRCLED DIGIT ONE)"),
        ("𝓱𝓮𝓵𝓵𝓸", "𝓱 (U+1D4F1, MATHEMATICAL BOLD SCRIPT SMALL H)"),
        ("3×4米", "× (U+00D7, MULTIPLICATION SIGN)"),
        ("<b>红墙</b>", "< (U+003C, LESS-THAN SIGN)"),
        ("@小明 #话题", "@ (U+0040, COMMERCIAL AT)"),
        ("␀空", "␀ (U+2400, SYMBOL FOR NULL)"),
        ("太好看了!!!", "!!! (U+0021, EXCLAMATION MARK)"),
        ("真的吗？？？？", "？？？ (U+FF1F, FULLWIDTH QUESTION MARK)"),
        ("目录.......1", "....... (U+002E, FULL STOP)"),
    ],
)
def test_special_characters_are_refused_by_name(caption: str, detail: str) -> None:
    verdict = check_special_characters(caption)

    assert reason_and_detail(verdict) == (Reason.SPECIAL_CHARACTERS, detail)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("红墙", None),
        ("红 墙绿", None),
        ("红", (Reason.TOO_FEW_CHARACTERS, "1 characters, at least 2")),
        ("红墙绿瓦五", (Reason.TOO_MANY_CHARACTERS, "5 characters, at most 4")),
        ("𠮷野", None),  # one character beyond 16 bits
    ],
)
def test_characters_are_counted_with_spaces(
    caption: str, expected: tuple[Reason, str] | None
) -> None:
    assert reason_and_detail(check_length(caption, at_least=2, at_most=4)) == expected


@pytest.mark.parametrize(
    ("caption", "share"),
    [
        ("北京故宫", 1.0),
        ("iPhone手机壳", 1 / 3),
        ("NBA总决赛 2023", 0.5),
        ("富士山の桜", 0.8),
        ("A red wall", 0.0),
        ("20230817", 0.0),
        ("人々", 1.0),
        ("𠮷野家", 1.0),
    ],
)
def test_the_share_of_chinese_characters_is_among_letters(caption: str, share: float) -> None:
    assert han_share(caption) == share


def test_too_small_a_share_is_refused_and_an_equal_one_kept() -> None:
    kept = check_han_share("NBA总决赛", at_least=0.5)
    refused = check_han_share("iPhone手机壳", at_least=0.5)

    assert (kept.rejection, kept.measures) == (None, {"han_share": 0.5})
    assert reason_and_detail(refused) == (
        Reason.HAN_SHARE,
        "0.333 of the letters are Chinese, at least 0.5",
    )
    assert refused.measures == {"han_share": 1 / 3}
