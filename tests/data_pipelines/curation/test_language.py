"""Languages of captions as crawls have them, by the real model."""

import socket

import pytest

from data_pipelines.curation.language import check_language, language_of, language_rules
from data_pipelines.rejections import Reason
from ernie_vilg.config.curation import Rules
from tests.data_pipelines.curation.verdicts import reason_and_detail


def no_model(text: str) -> tuple[str, float]:
    raise AssertionError(f"the script of {text!r} should decide")


@pytest.mark.parametrize(
    ("caption", "language", "score"),
    [
        ("红", "zh", 1.0),
        ("日落", "zh", 1.0),  # the model alone says Japanese, 0.96
        ("彩虹", "zh", 1.0),  # the model alone knows none of it
        ("臺灣風景", "zh", 1.0),
        ("iPhone手机壳", "zh", 3 / 4),
        ("NBA总决赛 2023", "zh", 3 / 4),
        ("T恤", "zh", 1 / 2),
        ("唐·吉诃德・塞万提斯", "zh", 1.0),  # the katakana dot is punctuation
        ("猫がソファで寝ている", "ja", 1.0),
        ("ﾄﾏﾄの写真", "ja", 1.0),
        ("한국 음식", "ko", 1.0),
        ("12345 ★", "und", 0.0),
    ],
)
def test_the_script_decides_where_it_can(caption: str, language: str, score: float) -> None:
    assert language_of(caption, no_model) == (language, score)


def test_the_model_decides_about_other_scripts() -> None:
    asked: list[str] = []

    def model(text: str) -> tuple[str, float]:
        asked.append(text)
        return "fr", 0.25

    assert language_of("un chat 猫 sur le lit", model) == ("fr", 0.25)
    assert asked == ["un chat 猫 sur le lit"]


def test_the_model_in_the_wheel_knows_languages_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (rule,) = language_rules(Rules(languages=("en", "ru")))

    measures = [
        rule(caption).measures["language"]
        for caption in [
            "a dog running on the beach",
            "красная машина на улице",
            "Ein roter Wagen steht vor dem Haus",
        ]
    ]

    assert measures == ["en", "ru", "de"]
    # The language is at the end of a text of more than 80 characters.
    assert rule("12 " * 40 + "красная машина на улице").measures["language"] == "ru"


def test_other_languages_and_doubtful_ones_are_refused() -> None:
    def judged(caption: str) -> tuple[Reason, str] | None:
        return reason_and_detail(
            check_language(
                caption,
                model=lambda text: ("zh", 0.125),
                languages=frozenset({"zh"}),
                min_score=0.5,
            )
        )

    assert judged("T恤") is None
    assert judged("东京タワー") == (
        Reason.LANGUAGE,
        "ja with score 1.000, accepted zh with at least 0.5",
    )
    assert judged("hello world") == (
        Reason.LANGUAGE,
        "zh with score 0.125, accepted zh with at least 0.5",
    )
    assert judged("2034") == (
        Reason.LANGUAGE,
        "und with score 0.000, accepted zh with at least 0.5",
    )
