"""Disturbed pictures show the same scenes with other pixels."""

import json

import numpy as np
import pytest

from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.evaluation_sets import DISTURBANCES, LOOK, scene_pairs
from ernie_vilg.shapes.looks import look_record
from ernie_vilg.shapes.scenes import Scene
from ernie_vilg.shapes.splits import HELD_OUT, ScenePair, scene_pair
from ernie_vilg.shapes.variety import VARIETIES
from tests.shapes.one_object import one_object


@pytest.fixture(scope="module")
def pair() -> ScenePair:
    return scene_pair(VARIETIES["varied"], seed=0, split=HELD_OUT, index=2)


def test_the_table_has_the_disturbances_of_the_reports() -> None:
    assert list(DISTURBANCES) == ["second_renderer", "shifted_1", "shifted_2", "jpeg_80"]


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_disturbance_changes_pixels_but_not_much(name: str, pair: ScenePair) -> None:
    before, after = np.asarray(pair.draw(), float), DISTURBANCES[name](pair)

    assert (after.mode, after.size) == ("RGB", (64, 64))
    difference = np.abs(np.asarray(after, float) - before).mean()
    assert 0.1 < difference < 15
    assert after.tobytes() == DISTURBANCES[name](pair).tobytes()


@pytest.mark.parametrize("pixels", [1, 2])
def test_a_shift_moves_right_and_down_and_fills_with_background(pixels: int) -> None:
    # The square touches the left and the upper edge.
    pair = one_object("正方形", x=14, y=14, radius=14, background=(228, 240, 252))

    moved = np.asarray(DISTURBANCES[f"shifted_{pixels}"](pair))

    assert (moved[pixels:, pixels:] == np.asarray(pair.draw())[:-pixels, :-pixels]).all()
    assert (moved[:pixels] == (228, 240, 252)).all()
    assert (moved[:, :pixels] == (228, 240, 252)).all()


def test_jpeg_disturbs_beside_edges(pair: ScenePair) -> None:
    difference = np.asarray(DISTURBANCES["jpeg_80"](pair), float) - np.asarray(pair.draw(), float)

    assert np.abs(difference).max() > 20


def test_lines_of_the_data_set_give_their_pairs(pair: ScenePair) -> None:
    line = json.dumps({"image": "0.png", "caption": pair.caption, LOOK: look_record(pair.look)})

    assert scene_pairs([json.loads(line)]) == [pair]


def test_a_line_without_a_fitting_look_is_refused(pair: ScenePair) -> None:
    one = caption_of(Scene(objects=pair.scene.objects[:1]))
    for record in (
        {"image": "a.png", "caption": pair.caption},
        {"image": "a.png", "caption": one, LOOK: look_record(pair.look)},
    ):
        with pytest.raises(ValueError, match=r"the line of a\.png has no 'look' with one entry"):
            scene_pairs([record])
