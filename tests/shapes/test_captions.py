"""Captions name scenes in several forms, and every form is read."""

import itertools
import random
import re
from collections import Counter

import pytest

from ernie_vilg.shapes.captions import (
    caption_of,
    parse_caption,
    random_caption,
    required_scenes,
)
from ernie_vilg.shapes.scenes import COLOURS, Scene, SceneObject, all_scenes, scene_of
from ernie_vilg.shapes.splits import SPLITS, scene_pair
from ernie_vilg.shapes.variety import SYNONYMS, VARIETIES

RED_CIRCLE = SceneObject(shape="圆形", size="大", colour="红色", quadrant="左上角")
BLUE_TRIANGLE = SceneObject(shape="三角形", size="小", colour="蓝色", quadrant="右下角")
BLACK_STAR = SceneObject(shape="五角星", size="小", colour="黑色", quadrant="左下角")
ORANGE_SQUARE = SceneObject(shape="正方形", size="小", colour="橙色", quadrant="右上角")
TWO = Scene(objects=(RED_CIRCLE, BLUE_TRIANGLE))
ONE = Scene(objects=(ORANGE_SQUARE,))


def test_the_first_form_is_the_sentence_of_the_specification() -> None:
    assert caption_of(TWO) == "左上角有一个红色的大圆形，右下角有一个蓝色的小三角形"


@pytest.mark.parametrize("num_objects", [1, 2])
def test_the_first_form_of_every_scene_is_read(num_objects: int) -> None:
    scenes = list(all_scenes(num_objects))[:: 47 if num_objects == 2 else 1]

    assert [parse_caption(caption_of(scene)) for scene in scenes] == scenes


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        pytest.param("红色的大圆形在左上角，蓝色的小三角形在右下角", TWO, id="second form"),
        pytest.param("左上角是一个大的红色圆形，右下角是一个小的蓝色三角形", TWO, id="third form"),
        pytest.param("在左上角画着一个红色大圆形，在右下角画着一个蓝色小三角形", TWO, id="fourth"),
        pytest.param("右下角有一个蓝色的小三角形，左上角有一个红色的大圆形", TWO, id="other order"),
        pytest.param("左上角有一个红色的大圆形,右下角有一个蓝色的小三角形", TWO, id="NFKC comma"),
        pytest.param("左上方有一个红色的大号圆圈，右下角有一个蓝色的小三角", TWO, id="synonyms"),
        pytest.param("右上方是一个小号的橘色方块", ONE, id="synonyms alone"),
        pytest.param("橙色的小方形在右上角", ONE, id="the other square"),
    ],
)
def test_a_caption_of_another_form_is_read(text: str, scene: Scene) -> None:
    assert parse_caption(text) == scene


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("左上角有一个红色的大圆形，", id="comma with nothing after it"),
        pytest.param("左上角有一个红色的大圆形 ", id="space at the end"),
        pytest.param("左上角有一个红色的圆形", id="no size"),
        pytest.param("左上角有一个粉色的大圆形", id="unknown colour"),
        pytest.param("左上角有一个红色的大圆形形", id="something after the shape"),
        pytest.param("左上角有一个红色大圆形", id="first form without a particle"),
        pytest.param("左上角有一个红色的大圆形右下角有一个蓝色的小三角形", id="no comma"),
        pytest.param("左上角有一个红色的大圆形，左上角有一个红色的大圆形", id="one quadrant twice"),
        pytest.param("左上角有一个红色的大圆形，左上方有一个红色的大圆形", id="twice by synonym"),
        pytest.param("左上角有一个红色的大圆形，蓝色的小三角形在右下角", id="two forms mixed"),
        pytest.param("，".join(f"{quadrant}有一个红色的大圆形" for quadrant in (
            "左上角", "右上角", "左下角", "右下角")), id="four objects"),
    ],
)  # fmt: skip
def test_what_is_not_a_caption_names_no_scene(text: str) -> None:
    assert parse_caption(text) is None


@pytest.mark.parametrize("variety", VARIETIES)
def test_every_written_caption_is_read(variety: str) -> None:
    for split, index in itertools.product(SPLITS, range(150)):
        pair = scene_pair(VARIETIES[variety], seed=3, split=split, index=index)
        assert parse_caption(pair.caption) == pair.scene, pair.caption


def form_of(caption: str) -> str:
    marks = {"有一个": "first", "是一个": "third", "画着一个": "fourth"}
    return next((form for mark, form in marks.items() if mark in caption), "second")


@pytest.mark.parametrize(
    ("variety", "forms"),
    [("moderate", ["first", "second"]), ("varied", ["first", "fourth", "second", "third"])],
)
def test_forms_are_equally_frequent(variety: str, forms: list[str]) -> None:
    rng = random.Random(0)
    captions = [random_caption(ONE, VARIETIES[variety], rng) for _ in range(1000)]

    counts = Counter(map(form_of, captions))

    assert sorted(counts) == forms
    assert min(counts.values()) > 0.8 * 1000 / len(forms)


def test_moderate_keeps_the_order_and_the_words_and_varied_does_not() -> None:
    rng = random.Random(0)
    scene = scene_of([RED_CIRCLE, BLACK_STAR, BLUE_TRIANGLE])

    moderate = {random_caption(scene, VARIETIES["moderate"], rng) for _ in range(300)}
    varied = [random_caption(scene, VARIETIES["varied"], rng) for _ in range(600)]

    assert moderate == {
        "左上角有一个红色的大圆形，左下角有一个黑色的小五角星，右下角有一个蓝色的小三角形",
        "红色的大圆形在左上角，黑色的小五角星在左下角，蓝色的小三角形在右下角",
    }
    orders = Counter(tuple(re.findall("红色|黑色|蓝色", text)) for text in varied)
    assert len(orders) == 6
    assert min(orders.values()) > 60  # of 100
    circles = Counter(
        word for text in varied for word in re.findall("圆形|圆圈|圆(?![形圈])", text)
    )
    assert min(circles["圆形"], circles["圆圈"], circles["圆"]) > 150  # of 200


def test_no_word_stands_for_two_things() -> None:
    words = [word for words in SYNONYMS.values() for word in words]

    assert len(words) == len(set(words))
    assert not set(words) & {"圆形", "正方形", "三角形", "五角星", "大", "小", *COLOURS}


def test_captions_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match="names no scene of the built-in data"):
        required_scenes(["井号"])
