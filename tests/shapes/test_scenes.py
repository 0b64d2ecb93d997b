"""Scenes have captions that name them, and pictures that show them."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ernie_vilg.shapes.scenes import (
    BACKGROUND,
    COLOURS,
    QUADRANTS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    all_scenes,
    caption_of,
    draw_object,
    draw_scene,
    draw_shape,
    is_held_out,
    parse_caption,
)

RED_CIRCLE = SceneObject(shape="圆形", size="大", colour="红色", quadrant="左上角")
BLUE_TRIANGLE = SceneObject(shape="三角形", size="小", colour="蓝色", quadrant="右下角")


def test_caption_is_the_sentence_of_the_specification() -> None:
    scene = Scene(objects=(RED_CIRCLE, BLUE_TRIANGLE))

    assert caption_of(scene) == "左上角有一个红色的大圆形，右下角有一个蓝色的小三角形"


def test_there_are_256_scenes_of_one_object_and_24576_of_two() -> None:
    counts = {1: 0, 2: 0}
    captions = set()
    for scene in all_scenes():
        counts[len(scene.objects)] += 1
        captions.add(caption_of(scene))

    assert counts == {1: 256, 2: 24_576}  # 4 * 64, and 6 pairs of quadrants * 64 * 64
    assert len(captions) == 24_832


def test_every_caption_is_parsed_back_to_its_scene() -> None:
    assert all(parse_caption(caption_of(scene)) == scene for scene in all_scenes())


def test_an_ascii_comma_is_read_as_a_full_width_one() -> None:
    text = "左上角有一个红色的大圆形,右下角有一个蓝色的小三角形"

    assert parse_caption(text) == Scene(objects=(RED_CIRCLE, BLUE_TRIANGLE))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("左上角有一个红色的大圆形，", id="comma with nothing after it"),
        pytest.param("左上角有一个红色的大圆形 ", id="space at the end"),
        pytest.param("左上角有一个红色的圆形", id="no size"),
        pytest.param("左上角有一个粉色的大圆形", id="unknown colour"),
        pytest.param(
            "右下角有一个蓝色的小三角形，左上角有一个红色的大圆形", id="quadrants out of order"
        ),
        pytest.param("左上角有一个红色的大圆形，左上角有一个红色的大圆形", id="one quadrant twice"),
        pytest.param(
            "左上角有一个红色的大圆形，右上角有一个红色的大圆形，左下角有一个红色的大圆形",
            id="three objects",
        ),
    ],
)
def test_what_is_not_a_caption_names_no_scene(text: str) -> None:
    assert parse_caption(text) is None


def test_a_tenth_of_the_scenes_is_held_out() -> None:
    held_out = sum(is_held_out(scene) for scene in all_scenes())

    # Binomial with mean 2483 and standard deviation 47; the number is fixed, because the hash is.
    assert held_out == 2470


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="colour='粉色': choose one of 红色"):
        SceneObject(shape="圆形", size="大", colour="粉色", quadrant="左上角")


def test_objects_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="each needs a quadrant of its own, in the order 左上角"):
        Scene(objects=(BLUE_TRIANGLE, RED_CIRCLE))


def draw_large(scene: Scene) -> Image.Image:
    """Draw all objects on one canvas at four times the size."""
    canvas = Image.new("RGB", (256, 256), BACKGROUND)
    for item in scene.objects:
        x, y = QUADRANTS[item.quadrant]
        draw_shape(
            ImageDraw.Draw(canvas),
            item.shape,
            centre=(4 * x, 4 * y),
            radius=4 * SIZES[item.size],
            fill=COLOURS[item.colour],
        )
    return canvas


def test_pasting_quadrants_gives_the_pixels_of_drawing_the_whole() -> None:
    scenes = [scene for index, scene in enumerate(all_scenes()) if index < 256 or index % 97 == 0]

    assert len(scenes) > 500
    for scene in scenes:
        whole = draw_large(scene).reduce(4)
        assert draw_scene(scene).tobytes() == whole.tobytes(), caption_of(scene)


def test_a_pixel_is_the_mean_of_four_by_four() -> None:
    scene = Scene(objects=(RED_CIRCLE, BLUE_TRIANGLE))
    large = np.asarray(draw_large(scene), dtype=np.float64)
    means = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))

    assert np.abs(np.asarray(draw_scene(scene)) - means).max() <= 0.5  # rounding


def coverage(shape: str, size: str) -> np.ndarray:
    """Return the fraction of each pixel of a quadrant that a black shape covers, float [32, 32]."""
    pixels = np.asarray(draw_object(shape=shape, size=size, colour="黑色"), dtype=np.float64)
    return (255.0 - pixels[:, :, 0]) / (255.0 - 20.0)


@pytest.mark.parametrize("size", SIZES)
def test_the_square_covers_whole_pixels_from_minus_r_to_plus_r(size: str) -> None:
    radius = SIZES[size]
    expected = np.zeros((32, 32))
    expected[16 - radius : 16 + radius, 16 - radius : 16 + radius] = 1

    assert np.array_equal(coverage("正方形", size), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("shape", "area_of_unit_radius"),
    [
        pytest.param("圆形", math.pi, id="circle: pi"),
        pytest.param("正方形", 4.0, id="square: 2 * 2"),
        pytest.param("三角形", 2.0, id="triangle: base 2 * height 2 / 2"),
        pytest.param("五角星", 5 * 0.45 * math.sin(math.pi / 5), id="star: ten triangles"),
    ],
)
def test_area_is_that_of_the_geometry(shape: str, size: str, area_of_unit_radius: float) -> None:
    area = coverage(shape, size).sum()

    # Pillow draws the outline of a polygon, a quarter of a pixel too wide.
    assert area == pytest.approx(area_of_unit_radius * SIZES[size] ** 2, rel=0.05)


@pytest.mark.parametrize("shape", ["三角形", "五角星"])
def test_the_tip_points_up(shape: str) -> None:
    covered = coverage(shape, "大") > 0.1
    top = np.nonzero(covered.any(axis=1))[0][0]

    assert top == 16 - 13
    assert np.nonzero(covered[top])[0].tolist() in ([15, 16], [16], [15])
    assert covered[20].sum() > covered[6].sum()


@pytest.mark.parametrize("quadrant", QUADRANTS)
def test_an_object_stays_in_its_quadrant(quadrant: str) -> None:
    x, y = QUADRANTS[quadrant]
    for shape in SHAPES:
        item = SceneObject(shape=shape, size="大", colour="黑色", quadrant=quadrant)
        drawn = np.asarray(draw_scene(Scene(objects=(item,)))) != 255

        assert drawn[y, x].all()
        outside = drawn.copy()
        outside[y - 16 : y + 16, x - 16 : x + 16] = False
        assert not outside.any()


@pytest.mark.parametrize(("colour", "rgb"), COLOURS.items())
def test_the_middle_has_the_colour(colour: str, rgb: tuple[int, int, int]) -> None:
    assert draw_object(shape="圆形", size="小", colour=colour).getpixel((16, 16)) == rgb
