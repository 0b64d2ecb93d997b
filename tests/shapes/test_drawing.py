"""Pictures show what their looks say."""

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ernie_vilg.shapes.drawing import draw_scene
from ernie_vilg.shapes.scenes import COLOURS, QUADRANTS, SHAPES
from ernie_vilg.shapes.second_renderer import draw_scene_again
from ernie_vilg.shapes.splits import ScenePair, scene_pair
from ernie_vilg.shapes.variety import VARIETIES
from tests.shapes.one_object import one_object

AREAS = {
    "圆形": math.pi,
    "正方形": 4.0,  # 2 * 2
    "三角形": 2.0,  # base 2 * height 2 / 2
    "五角星": 5 * 0.45 * math.sin(math.pi / 5),  # ten triangles
}
PERIMETERS = {
    "圆形": 2 * math.pi,
    "正方形": 8.0,
    "三角形": 2 + 2 * math.sqrt(5),
    "五角星": 10 * math.sqrt(1 + 0.45**2 - 2 * 0.45 * math.cos(math.pi / 5)),
}


def coverage(pair: ScenePair, *, second: bool = False) -> NDArray[np.float64]:
    """Return the fraction of each pixel that a black object covers, [64, 64]."""
    draw = draw_scene_again if second else draw_scene
    pixels = np.asarray(draw(pair.scene, pair.look), dtype=np.float64)
    return (255.0 - pixels[:, :, 0]) / (255.0 - 20.0)


@pytest.mark.parametrize("radius", [8.0, 13.0])
def test_the_square_covers_whole_pixels_from_minus_r_to_plus_r(radius: float) -> None:
    expected = np.zeros((64, 64))
    span = slice(round(16 - radius), round(16 + radius))
    expected[span, span] = 1

    assert np.array_equal(coverage(one_object("正方形", radius=radius)), expected)


def test_an_eighth_of_a_pixel_shows_at_the_edges() -> None:
    covered = coverage(one_object("正方形", "小", x=16.125))

    assert covered[16, 8] == pytest.approx(7 / 8, abs=0.005)
    assert covered[16, 24] == pytest.approx(1 / 8, abs=0.005)
    assert np.all(covered[16, 9:24] == 1)


@pytest.mark.parametrize("rotation", [0.0, -15.0, 7.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_area_is_that_of_the_geometry(shape: str, rotation: float) -> None:
    for radius in (7.0, 12.875):
        area = coverage(one_object(shape, radius=radius, rotation=rotation)).sum()
        assert area == pytest.approx(AREAS[shape] * radius**2, rel=0.02)


@pytest.mark.parametrize("rotation", [0.0, 10.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_second_renderers_outline_lies_a_quarter_pixel_outside(
    shape: str, rotation: float
) -> None:
    area = coverage(one_object(shape, radius=13.0, rotation=rotation), second=True).sum()

    wider = AREAS[shape] * 13.0**2 + 0.25 * PERIMETERS[shape] * 13.0
    assert area == pytest.approx(wider, rel=0.01)


@pytest.mark.parametrize("shape", ["三角形", "五角星"])
def test_the_tip_points_up(shape: str) -> None:
    covered = coverage(one_object(shape))[:32, :32] > 0.1
    top = np.nonzero(covered.any(axis=1))[0][0]

    assert top == 16 - 13
    assert np.nonzero(covered[top])[0].tolist() in ([15, 16], [16], [15])
    assert covered[20].sum() > covered[6].sum()


@pytest.mark.parametrize("second", [False, True])
def test_rotation_is_clockwise(second: bool) -> None:
    covered = coverage(one_object("三角形", rotation=15.0), second=second)[:32, :32]
    top = np.nonzero(covered.sum(axis=1) > 0.1)[0][0]

    # The tip moves from (16, 3) to the right by 13 * sin(15 degrees).
    assert covered[top].argmax() == pytest.approx(16 + 13 * math.sin(math.radians(15)), abs=1)


@pytest.mark.parametrize("variety", VARIETIES)
def test_an_object_stays_in_its_quadrant(variety: str) -> None:
    for index in range(0, 300, 3):
        pair = scene_pair(VARIETIES[variety], seed=0, split="train", index=index)
        (item,), (look,) = pair.scene.objects, pair.look.objects
        x, y = QUADRANTS[item.quadrant]
        # The second renderer draws across borders, so it would show what the first one cuts off.
        sharp = dataclasses.replace(look, radius=look.radius - 0.5)
        wide = draw_scene_again(pair.scene, dataclasses.replace(pair.look, objects=(sharp,)))
        drawn = (np.asarray(wide) != pair.look.background).any(axis=2)
        drawn[y - 16 : y + 16, x - 16 : x + 16] = False
        assert not drawn.any()


@pytest.mark.parametrize(("colour", "rgb"), COLOURS.items())
def test_the_middle_has_the_colour(colour: str, rgb: tuple[int, int, int]) -> None:
    pair = one_object(colour=colour)

    assert draw_scene(pair.scene).getpixel((16, 16)) == rgb
    assert draw_scene_again(pair.scene, pair.look).getpixel((16, 16)) == rgb


def test_both_renderers_draw_the_look_of_a_scene() -> None:
    pair = scene_pair(VARIETIES["varied"], seed=0, split="train", index=2)
    first, second = (
        np.asarray(draw(pair.scene, pair.look), np.float64)
        for draw in (draw_scene, draw_scene_again)
    )

    assert not np.array_equal(first, second)
    assert np.abs(first - second).mean() < 5  # edges alone differ
    for look in pair.look.objects:
        middle = (int(look.y), int(look.x))
        assert tuple(first[middle]) == tuple(second[middle]) == look.colour
    assert tuple(first[0, 0]) == tuple(second[0, 0]) == pair.look.background
