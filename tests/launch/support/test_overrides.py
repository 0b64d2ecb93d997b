"""A setting keeps what was typed, or the message shows how to write it."""

import random

import pytest

from ernie_vilg.config.generation import GenerateConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.errors import InputError
from launch.support.composition import compose_program

REQUIRED = {
    "generate": ["weights=w", "output_dir=o"],
    "pretrain": ["experiment=quickstart"],
}


def pretrain(*words: str) -> PretrainConfig:
    config: PretrainConfig = compose_program("pretrain", [*REQUIRED["pretrain"], *words])
    return config


def prompts_of(word: str) -> tuple[str, ...]:
    config: GenerateConfig = compose_program("generate", [*REQUIRED["generate"], word])
    return config.prompts


@pytest.mark.parametrize(
    "typed",
    [
        *("1e-4", "1_000", "true", "NO", "0x10", "007", "1:30", "~", "+1", ".5", "inf"),
        *("out/run[1]", "a=b", "a#b", "a,b", "a b", "50% (red)", "a:b", "{a", "a}", "it's"),
        *(
            "输出/a",
            "${oc.env:HOME}",
            "a${data.seed}b",
            "\\${data.seed}",
            "$HOME",
            "*?.png",
        ),
    ],
)
def test_a_text_is_what_was_typed(typed: str) -> None:
    config = pretrain(
        f"run_dir={typed}", f"+cluster.environment.A={typed}", f"tracking.name={typed}"
    )

    assert config.run_dir == typed
    assert config.cluster.environment["A"] == typed
    assert config.tracking.name == typed  # a setting that may be null


def test_any_text_is_what_was_typed() -> None:
    chosen = random.Random(0)
    for _ in range(10):
        several = ["x" + "".join(chosen.choices("\\\"'${}[]=,# a红\n%:", k=8)) for _ in range(4)]
        variables = [
            f"+cluster.environment.A{index}={typed}" for index, typed in enumerate(several)
        ]
        config = pretrain(f"tracking.notes={several[0]}", *variables)
        assert config.tracking.notes == several[0]
        assert list(config.cluster.environment.values()) == several
        typed = several[0]
        assert prompts_of(f"prompts=[{typed.replace(',', '')}]") == (
            typed.replace(",", "").strip(),
        )


@pytest.mark.parametrize("typed", ["'a b'", '"a b"'], ids=["single", "double"])
def test_quotation_marks_around_a_text_are_no_part_of_it(typed: str) -> None:
    assert pretrain(f"run_dir={typed}").run_dir == "a b"


def test_null_and_numbers_keep_their_meaning() -> None:
    config = pretrain("tracking.name=null", "training.steps=7", "optimizer.learning_rate=1e-4")

    assert (config.tracking.name, config.training.steps) == (None, 7)
    assert config.optimizer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        pytest.param("prompts=[50% red (circle)]", ("50% red (circle)",), id="one text"),
        pytest.param("prompts=[a [b] #1 = c]", ("a [b] #1 = c",), id="brackets"),
        pytest.param("prompts=[a child's bed]", ("a child's bed",), id="an apostrophe"),
        pytest.param("prompts=[1e-4,true,null]", ("1e-4", "true", "null"), id="no numbers"),
        pytest.param("prompts=[左上角，圆形,b]", ("左上角，圆形", "b"), id="Chinese"),
        pytest.param('prompts=["a red circle, big",b]', ("a red circle, big", "b"), id="quoted"),
        pytest.param("prompts=['a, b', \"c\"]", ("a, b", "c"), id="both quotation marks"),
        pytest.param("prompts=[${oc.env:HOME}]", ("${oc.env:HOME}",), id="no interpolation"),
        pytest.param('prompts=["${oc.env:HOME}"]', ("${oc.env:HOME}",), id="none in quotes"),
    ],
)
def test_a_list_of_texts_holds_what_was_typed(word: str, expected: tuple[str, ...]) -> None:
    assert prompts_of(word) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        pytest.param("{A:1e-4}", {"A": "1e-4"}, id="no number"),
        pytest.param("{A: true,B:1_000}", {"A": "true", "B": "1_000"}, id="two"),
        pytest.param("{A:it's,B:it's}", {"A": "it's", "B": "it's"}, id="apostrophes"),
        pytest.param("{A:'a, b' ,B:\"}\"}", {"A": "a, b", "B": "}"}, id="quoted"),
        pytest.param("{A:http://h:1/x[1]=#,B:}", {"A": "http://h:1/x[1]=#", "B": ""}, id="signs"),
        pytest.param("{}", {}, id="none"),
    ],
)
def test_texts_in_braces_are_what_was_typed(word: str, expected: dict[str, str]) -> None:
    assert pretrain(f"cluster.environment={word}").cluster.environment == expected


def test_a_text_within_a_section_in_braces_is_what_was_typed() -> None:
    config = pretrain("data.mixture={a:{token_shards:1e-4,weight:1e0}}", "data.token_shards=null")

    assert config.data.mixture["a"].token_shards == "1e-4"
    assert config.data.mixture["a"].weight == 1.0


@pytest.mark.parametrize("word", ["{A}", "{A:1,B}", "{A:a, b}", "{A:x[1,B:2}", "{:1}", "{A:1,}"])
def test_braces_that_can_be_read_in_two_ways_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="refuses these settings") as caught:
        pretrain(f"cluster.environment={word}")

    assert "write {NAME:VALUE,NAME:VALUE}" in str(caught.value.__cause__)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", ".nan", "NaN"])
def test_what_is_no_number_is_no_temperature(value: str) -> None:
    for program in ("generate", "caption"):
        required = {
            "generate": ["prompts=[a]", "output_dir=o"],
            "caption": ["images=i", "output=o"],
        }
        with pytest.raises(ValueError, match="refuses these settings"):
            compose_program(program, ["weights=w", *required[program], f"temperature={value}"])


def test_a_section_that_is_left_out_is_refused() -> None:
    with pytest.raises(ValueError, match="refuses these settings") as caught:
        compose_program("pretrain", [*REQUIRED["pretrain"], "~training"])

    assert "~training: a setting cannot be removed" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        pytest.param(
            "prompts=[a red circle, big]",
            """'prompts=["a red circle, big"]' for one, 'prompts=["a red circle","big"]' for 2""",
            id="a comma in a prompt, or two prompts",
        ),
        pytest.param("prompts=a red circle", """'prompts=["a red circle"]'""", id="no list"),
        pytest.param("prompts=[a", "a list belongs here", id="an open bracket"),
        pytest.param("prompts=[a,]", "a comma begins another element", id="an empty element"),
        pytest.param("output_dir=[a]", """'output_dir="[a]"'""", id="a list for a text"),
        pytest.param("output_dir={a:1}", """'output_dir="{a:1}"'""", id="a mapping for a text"),
        pytest.param("batch_size=${seed}", "does not refer to another one", id="an interpolation"),
    ],
)
def test_a_doubtful_word_is_refused_with_the_right_one(word: str, message: str) -> None:
    with pytest.raises(ValueError, match="refuses these settings") as caught:
        compose_program("generate", [*REQUIRED["generate"], "prompts=[a]", word])

    assert message in str(caught.value.__cause__)


def test_a_null_character_is_no_part_of_a_word() -> None:
    with pytest.raises(InputError, match="null character"):
        pretrain("experiment=quick\0start")


@pytest.mark.parametrize(
    ("word", "most"),
    [
        pytest.param("model.num_layers=4000000000", "1000", id="layers that are never all built"),
        pytest.param("model.ffn_multiplier=9223372036854775808", "1024", id="beyond 64 bits"),
        pytest.param("model.image_grid_size=100000", "1024", id="a mask of 10^20 entries"),
    ],
)
def test_a_size_that_no_model_has_is_a_slip(word: str, most: str) -> None:
    with pytest.raises(InputError, match=f"at most {most}"):
        pretrain(word)
