"""A picture is judged by its objects, not by its sharpness."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ernie_vilg.shapes.judge import (
    caption_correct,
    objects_correct,
    read_objects,
    required_scenes,
    score_pictures,
)
from ernie_vilg.shapes.scenes import Scene, SceneObject, all_scenes, caption_of, draw_scene

RED_CIRCLE = SceneObject(shape="圆形", size="大", colour="红色", quadrant="左上角")
BLUE_TRIANGLE = SceneObject(shape="三角形", size="小", colour="蓝色", quadrant="右下角")
TWO = Scene(objects=(RED_CIRCLE, BLUE_TRIANGLE))


def single_object_scenes() -> list[Scene]:
    return [scene for scene in all_scenes() if len(scene.objects) == 1]


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.2))


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 40, (64, 64, 3))  # PSNR about 16 dB
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def shifted(image: Image.Image) -> Image.Image:
    moved = Image.new("RGB", image.size, (255, 255, 255))
    moved.paste(image, (1, 1))
    return moved


@pytest.mark.parametrize("change", [lambda image: image, blurred, noisy, shifted])
def test_every_object_in_every_quadrant_is_read_back(
    change: Callable[[Image.Image], Image.Image],
) -> None:
    wrong = [
        caption_of(scene)
        for scene in single_object_scenes()
        if tuple(read_objects(change(draw_scene(scene))).values()) != scene.objects
    ]
    assert wrong == []


def test_picture_drawn_by_hand_is_read() -> None:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).rectangle((40, 8, 55, 23), fill=(40, 160, 60))  # 16 wide around (48, 16)

    expected = SceneObject(shape="正方形", size="小", colour="绿色", quadrant="右上角")
    assert read_objects(image) == {"右上角": expected}


def test_blank_picture_shows_no_object() -> None:
    assert read_objects(Image.new("RGB", (64, 64), (250, 252, 255))) == {}


def test_three_objects_are_read() -> None:
    image = draw_scene(TWO)
    image.paste(image.crop((0, 0, 32, 32)), (32, 0))

    assert len(read_objects(image)) == 3


def test_other_size_is_refused() -> None:
    with pytest.raises(ValueError, match="a picture of 32 x 64 pixels"):
        read_objects(Image.new("RGB", (32, 64)))


def test_scores_of_a_right_picture_and_of_one_with_a_wrong_colour() -> None:
    green = Scene(
        objects=(
            SceneObject(shape="圆形", size="大", colour="绿色", quadrant="左上角"),
            BLUE_TRIANGLE,
        )
    )

    scores = score_pictures([TWO, TWO], [draw_scene(TWO), draw_scene(green)])

    assert asdict(scores) == {
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


def test_object_in_the_wrong_quadrant_is_one_missing_and_one_extra() -> None:
    drawn = Scene(objects=(SceneObject(shape="圆形", size="大", colour="红色", quadrant="右上角"),))

    scores = score_pictures([Scene(objects=(RED_CIRCLE,))], [draw_scene(drawn)])

    assert scores.objects_correct == 0
    assert scores.quadrants_correct == 0
    assert scores.extra_objects == 1


def test_extra_object_makes_the_scene_wrong_but_not_the_named_object() -> None:
    scores = score_pictures([Scene(objects=(RED_CIRCLE,))], [draw_scene(TWO)])

    assert scores.objects_correct == 1
    assert scores.scenes_correct == 0
    assert scores.extra_objects == 1


def test_objects_correct_counts_objects() -> None:
    assert objects_correct(TWO, draw_scene(TWO)) == 2
    assert objects_correct(TWO, draw_scene(Scene(objects=(RED_CIRCLE,)))) == 1


def test_pictures_and_scenes_must_pair() -> None:
    with pytest.raises(ValueError, match="0 pictures for 1 scenes"):
        score_pictures([TWO], [])


@pytest.mark.parametrize(
    ("caption", "is_correct"),
    [
        pytest.param("左上角有一个红色的大圆形，右下角有一个蓝色的小三角形", True, id="exact"),
        pytest.param("左上角有一个红色的大圆形,右下角有一个蓝色的小三角形", True, id="NFKC comma"),
        pytest.param("左上角有一个红色的大圆形", False, id="one object missing"),
        pytest.param("左上角有一个红色的小圆形，右下角有一个蓝色的小三角形", False, id="size"),
        pytest.param("红色的大圆形", False, id="no caption of any scene"),
        pytest.param("", False, id="empty"),
    ],
)
def test_caption_must_name_exactly_the_objects(caption: str, is_correct: bool) -> None:
    assert caption_correct(TWO, caption) is is_correct


def test_captions_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match="names no scene of the built-in data"):
        required_scenes(["井号"])
