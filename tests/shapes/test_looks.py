"""Looks stay within the limits of their variety and reach them."""

import json
from collections.abc import Callable

import pytest

from ernie_vilg.shapes.looks import ObjectLook, look_of_record, look_record
from ernie_vilg.shapes.scenes import COLOURS, QUADRANTS, SceneObject
from ernie_vilg.shapes.splits import scene_pair
from ernie_vilg.shapes.variety import VARIETIES

Drawn = list[tuple[SceneObject, ObjectLook]]


@pytest.fixture(scope="module", params=["moderate", "varied"])
def variety(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def drawn(variety: str) -> Drawn:
    pairs = [
        scene_pair(VARIETIES[variety], seed=1, split="train", index=index) for index in range(1500)
    ]
    return [
        item for pair in pairs for item in zip(pair.scene.objects, pair.look.objects, strict=True)
    ]


def spread(drawn: Drawn, value: Callable[[SceneObject, ObjectLook], float]) -> tuple[float, float]:
    values = [value(item, look) for item, look in drawn]
    return min(values), max(values)


def test_centres_are_jittered_in_both_directions(drawn: Drawn, variety: str) -> None:
    limit = {"moderate": 2.0, "varied": 4.0}[variety]

    for axis, name in enumerate(("x", "y")):
        small = [(item, look) for item, look in drawn if item.size == "小"]
        found = spread(
            small,
            lambda item, look, axis=axis, name=name: (
                getattr(look, name) - QUADRANTS[item.quadrant][axis]
            ),
        )
        assert found == (-limit, limit)


def test_radii_leave_a_gap_between_small_and_large(drawn: Drawn, variety: str) -> None:
    limits = {
        "moderate": {"小": (7.0, 9.0), "大": (12.0, 14.0)},
        "varied": {"小": (6.5, 8.5), "大": (11.0, 13.0)},
    }[variety]

    for size, expected in limits.items():
        of_size = [pair for pair in drawn if pair[0].size == size]
        assert spread(of_size, lambda item, look: look.radius) == expected


def test_rotation_reaches_its_limit(drawn: Drawn, variety: str) -> None:
    smallest, largest = spread(drawn, lambda item, look: look.rotation)

    if variety == "moderate":
        assert (smallest, largest) == (0, 0)
    else:
        assert -15 <= smallest < -14.5
        assert 14.5 < largest <= 15


def test_colours_stay_near_the_named_ones(drawn: Drawn, variety: str) -> None:
    limit = {"moderate": 0, "varied": 15}[variety]

    for channel in range(3):
        found = spread(
            drawn,
            lambda item, look, channel=channel: (
                look.colour[channel] - COLOURS[item.colour][channel]
            ),
        )
        assert found == (-limit, limit)


def test_positions_and_radii_take_every_multiple_of_the_step(drawn: Drawn, variety: str) -> None:
    steps_per_pixel = {"moderate": 1, "varied": 8}[variety]

    values = [(look.x, look.y, look.radius) for _, look in drawn]

    parts = {value * steps_per_pixel % steps_per_pixel for of_one in values for value in of_one}
    assert parts == set(range(steps_per_pixel))


@pytest.mark.parametrize(("name", "count"), [("moderate", 1), ("varied", 4)])
def test_backgrounds_are_light_and_all_occur(name: str, count: int) -> None:
    seen = {
        scene_pair(VARIETIES[name], seed=0, split="train", index=index).look.background
        for index in range(60)
    }

    assert len(seen) == count
    assert all(min(tone) >= 225 for tone in seen)


def test_a_look_survives_json() -> None:
    look = scene_pair(VARIETIES["varied"], seed=0, split="train", index=2).look

    assert look_of_record(json.loads(json.dumps(look_record(look)))) == look
