"""A scene is one to three objects in words."""

import pytest

from ernie_vilg.shapes.scenes import Scene, SceneObject, all_scenes, scene_of

RED_CIRCLE = SceneObject(shape="圆形", size="大", colour="红色", quadrant="左上角")
BLUE_TRIANGLE = SceneObject(shape="三角形", size="小", colour="蓝色", quadrant="右下角")


@pytest.mark.parametrize(("num_objects", "count"), [(1, 256), (2, 24_576)])
def test_every_scene_is_there_once(num_objects: int, count: int) -> None:
    scenes = list(all_scenes(num_objects))  # 4 * 64, and 6 pairs of quadrants * 64 * 64

    assert len(scenes) == len(set(scenes)) == count
    assert {len(scene.objects) for scene in scenes} == {num_objects}


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="colour='粉色': choose one of 红色"):
        SceneObject(shape="圆形", size="大", colour="粉色", quadrant="左上角")


def test_objects_out_of_order_are_refused_and_can_be_ordered() -> None:
    with pytest.raises(ValueError, match="each needs a quadrant of its own, in the order 左上角"):
        Scene(objects=(BLUE_TRIANGLE, RED_CIRCLE))

    assert scene_of([BLUE_TRIANGLE, RED_CIRCLE]).objects == (RED_CIRCLE, BLUE_TRIANGLE)


@pytest.mark.parametrize("count", [0, 4])
def test_a_scene_has_one_to_three_objects(count: int) -> None:
    items = [
        SceneObject(shape="圆形", size="大", colour="红色", quadrant=quadrant)
        for quadrant in ("左上角", "右上角", "左下角", "右下角")[:count]
    ]

    with pytest.raises(ValueError, match=f"a scene of {count} objects: it must hold 1 to 3"):
        scene_of(items)
