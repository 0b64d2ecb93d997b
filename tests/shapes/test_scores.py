"""Figures count objects, scenes and captions, together and by number of objects."""

from dataclasses import asdict

import pytest
from PIL import Image

from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.drawing import draw_scene
from ernie_vilg.shapes.scenes import Scene, SceneObject
from ernie_vilg.shapes.scores import (
    caption_correct,
    objects_correct,
    score_captions,
    score_pictures,
)

RED_CIRCLE = SceneObject(shape="圆形", size="大", colour="红色", quadrant="左上角")
GREEN_CIRCLE = SceneObject(shape="圆形", size="大", colour="绿色", quadrant="左上角")
BLUE_TRIANGLE = SceneObject(shape="三角形", size="小", colour="蓝色", quadrant="右下角")
BLACK_STAR = SceneObject(shape="五角星", size="大", colour="黑色", quadrant="左下角")
ONE = Scene(objects=(RED_CIRCLE,))
TWO = Scene(objects=(RED_CIRCLE, BLUE_TRIANGLE))
GREEN_TWO = Scene(objects=(GREEN_CIRCLE, BLUE_TRIANGLE))
THREE = Scene(objects=(RED_CIRCLE, BLACK_STAR, BLUE_TRIANGLE))


def test_scores_of_a_right_picture_and_of_one_with_a_wrong_colour() -> None:
    scores = asdict(score_pictures([TWO, TWO], [draw_scene(TWO), draw_scene(GREEN_TWO)]))

    figures = {
        "objects_correct": 0.75,  # three of four
        "shapes_correct": 1.0,
        "colours_correct": 0.75,
        "sizes_correct": 1.0,
        "quadrants_correct": 1.0,
        "scenes_correct": 0.5,
        "extra_objects": 0,
        "num_objects": 4,
        "num_scenes": 2,
    }
    assert scores == {**figures, "by_num_objects": {"2": figures}}


def test_scenes_of_one_two_and_three_objects_are_scored_apart() -> None:
    blank = Image.new("RGB", (64, 64), "white")

    scores = score_pictures(
        [ONE, TWO, THREE, THREE], [blank, draw_scene(GREEN_TWO), draw_scene(THREE), draw_scene(TWO)]
    )

    apart = {number: part.objects_correct for number, part in scores.by_num_objects.items()}
    assert apart == {"1": 0.0, "2": 0.5, "3": pytest.approx(5 / 6)}
    assert scores.objects_correct == pytest.approx(6 / 9)
    assert scores.by_num_objects["3"].scenes_correct == 0.5
    assert [part.num_scenes for part in scores.by_num_objects.values()] == [1, 1, 2]


def test_object_in_the_wrong_quadrant_is_one_missing_and_one_extra() -> None:
    drawn = Scene(objects=(SceneObject(shape="圆形", size="大", colour="红色", quadrant="右上角"),))

    scores = score_pictures([ONE], [draw_scene(drawn)])

    assert scores.objects_correct == 0
    assert scores.quadrants_correct == 0
    assert scores.extra_objects == 1


def test_extra_object_makes_the_scene_wrong_but_not_the_named_object() -> None:
    scores = score_pictures([ONE], [draw_scene(TWO)])

    assert scores.objects_correct == 1
    assert scores.scenes_correct == 0
    assert scores.extra_objects == 1


def test_objects_correct_counts_objects() -> None:
    assert objects_correct(TWO, draw_scene(TWO)) == 2
    assert objects_correct(TWO, draw_scene(ONE)) == 1


@pytest.mark.parametrize("score", [score_pictures, score_captions])
def test_each_scene_needs_its_own(score: object) -> None:
    with pytest.raises(ValueError, match=r"0 (pictures|captions) for 1 scenes: give one per scene"):
        score([TWO], [])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("caption", "is_correct"),
    [
        pytest.param("左上角有一个红色的大圆形，右下角有一个蓝色的小三角形", True, id="first form"),
        pytest.param("蓝色的小三角形在右下角，红色的大圆形在左上角", True, id="other form, order"),
        pytest.param("左上角有一个红色的大圆形,右下角有一个蓝色的小三角形", True, id="NFKC comma"),
        pytest.param("左上角有一个红色的大圆形", False, id="one object missing"),
        pytest.param("左上角有一个红色的小圆形，右下角有一个蓝色的小三角形", False, id="size"),
        pytest.param("红色的大圆形", False, id="no caption of any scene"),
        pytest.param("", False, id="empty"),
    ],
)
def test_caption_must_name_exactly_the_objects(caption: str, is_correct: bool) -> None:
    assert caption_correct(TWO, caption) is is_correct


def test_captions_are_scored_by_number_of_objects() -> None:
    captions = [caption_of(TWO), caption_of(ONE), caption_of(TWO), caption_of(THREE)]

    scores = score_captions([TWO, TWO, THREE, THREE], captions)

    assert asdict(scores) == {
        "captions_correct": 0.5,
        "num_captions": 4,
        "by_num_objects": {"2": 0.5, "3": 0.5},
    }
