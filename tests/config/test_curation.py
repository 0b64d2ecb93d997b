"""Rules are checked against each other and against the models before anything is read."""

from typing import Any

import pytest

from ernie_vilg.config.curation import CurationConfig, DeduplicationConfig, Rules
from ernie_vilg.config.shards import BuildShardsConfig, SourceConfig
from ernie_vilg.errors import InputError

THRESHOLD_WITHOUT_MODEL = [
    ({"min_similarity": 0.5}, "similarity_model"),
    ({"max_nsfw": 0.5}, "nsfw_model"),
    ({"max_watermark": 0.5}, "watermark_model"),
    ({"translate": True}, "translation_model or translation_file"),
]


def config(**settings: Any) -> CurationConfig:
    """Return settings whose only rules, `web`, have some of them."""
    names = Rules.__dataclass_fields__
    rules = {name: value for name, value in settings.items() if name in names}
    others = {name: value for name, value in settings.items() if name not in names}
    return CurationConfig(rules={"web": Rules(**rules)}, **others)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_words": 0}, r"curation\.rules\.web\.max_words=0: must be at least 1, or null"),
        ({"min_side": 1.5}, r"curation\.rules\.web\.min_side=1\.5: must be a whole number"),
        ({"min_contrast": 0.0}, r"curation\.rules\.web\.min_contrast=0\.0: must be above 0"),
        ({"max_aspect_ratio": 0.5}, r"max_aspect_ratio=0\.5: must be at least 1"),
        ({"min_han_share": 50.0}, r"min_han_share=50\.0: must be at least 0 and at most 1"),
        ({"special_characters": "no"}, r"special_characters=no: choose allow or refuse"),
        (
            {"min_characters": 9, "max_characters": 8},
            r"web\.min_characters=9 with max_characters=8: no caption has both",
        ),
        (
            {"min_nouns": 3, "max_words": 2},
            r"web\.min_nouns=3 with max_words=2: every noun is a word",
        ),
        (
            {"min_language_score": 0.5},
            r"web\.min_language_score=0\.5 with languages=\[\]: it has no effect",
        ),
        ({"languages": ("cn",)}, r"languages=\[cn\]: cn is no language .* Chinese is zh"),
        ({"languages": ("zh", "ZH")}, r"languages=\[zh,ZH\]: ZH is no language"),
        (
            {"languages": ("en",), "min_han_share": 0.6},
            r"web\.min_han_share=0\.6 with languages=\[en\]: .*set min_han_share to null",
        ),
        (
            {"translation_model": "a", "translation_file": "b"},
            r"translation_model=a and translation_file=b: set one of them to null",
        ),
        ({"similarity_sha256": "0" * 64}, r"similarity_sha256 without similarity_model"),
        ({"translation_prefix": ">>cmn<<"}, r"translation_prefix=>>cmn<< without"),
    ],
)
def test_rules_that_cannot_hold_or_have_no_effect_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"min_characters": 8, "max_characters": 8},
        {"min_nouns": 2, "max_words": 2},
        {"languages": ("zh", "en"), "min_language_score": 1.0, "min_han_share": 1.0},
    ],
)
def test_rules_that_can_hold_are_accepted(settings: dict[str, Any]) -> None:
    assert config(**settings).rules["web"] == Rules(**settings)


@pytest.mark.parametrize(("threshold", "model"), THRESHOLD_WITHOUT_MODEL)
def test_a_rule_without_its_model_is_refused(threshold: dict[str, Any], model: str) -> None:
    (rule,) = threshold
    with pytest.raises(
        InputError, match=rf"curation\.rules\.web\.{rule} without a model: set curation\.{model}"
    ):
        config(**threshold).rules_of({"web": None})


@pytest.mark.parametrize(("threshold", "models"), THRESHOLD_WITHOUT_MODEL)
def test_a_model_without_its_rule_is_refused(threshold: dict[str, Any], models: str) -> None:
    model = models.split(" or ")[0]
    given = config(**threshold, **{model: "folder"})

    assert given.rules_of({"web": None}) == {"web": "web"}
    with pytest.raises(InputError, match=rf"curation\.{model}.*=folder: no source has rules with"):
        config(**{model: "folder"}).rules_of({"web": None})


def test_rules_of_no_source_need_no_model() -> None:
    two = CurationConfig(rules={"web": Rules(min_similarity=0.5), "search": Rules()})

    assert two.rules_of({"search": None}) == {"search": "search"}


def test_a_source_takes_the_rules_it_names_or_its_own_or_the_default() -> None:
    rules = {"web": Rules(), "default": Rules()}

    assert CurationConfig(rules=rules).rules_of({"web": None, "books": None, "news": "web"}) == {
        "web": "web",
        "books": "default",
        "news": "web",
    }
    assert CurationConfig().rules_of({"web": None}) == {"web": None}


def test_a_source_without_rules_among_others_is_refused() -> None:
    with pytest.raises(InputError, match=r"'books': curation\.rules has web, and none .* rules="):
        config().rules_of({"books": None})
    with pytest.raises(InputError, match=r"rules=wbe of source 'books': curation\.rules has web"):
        config().rules_of({"books": "wbe"})


def test_the_program_checks_the_rules_of_its_sources() -> None:
    with pytest.raises(InputError, match=r"web\.min_similarity without a model"):
        BuildShardsConfig(
            sources={"web": SourceConfig(location="folder")},
            output_dir="out",
            image_size=64,
            curation=config(min_similarity=0.5),
        )


def test_evaluation_sets_are_local() -> None:
    with pytest.raises(InputError, match=r"curation\.deduplication\.against\[1\]=s3:"):
        DeduplicationConfig(against=("hashes.txt", "s3://bucket/hashes.txt"))
