"""Splits are disjoint by content, and a pair depends on its place alone."""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import pytest

from ernie_vilg.shapes.scenes import COLOURS, SHAPES, all_scenes
from ernie_vilg.shapes.splits import (
    HELD_OUT,
    NEVER_TRAINED,
    SPLITS,
    TRAIN,
    UNSEEN_PAIRS,
    ScenePair,
    scene_pair,
    split_of,
)
from ernie_vilg.shapes.variety import VARIETIES


def pairs_of(split: str, count: int, *, variety: str = "moderate") -> list[ScenePair]:
    return [
        scene_pair(VARIETIES[variety], seed=0, split=split, index=index) for index in range(count)
    ]


def kinds(pairs: Sequence[ScenePair]) -> Counter[tuple[str, str]]:
    return Counter((item.shape, item.colour) for pair in pairs for item in pair.scene.objects)


@pytest.mark.parametrize("split", SPLITS)
def test_one_two_and_three_objects_have_equal_shares(split: str) -> None:
    counts = Counter(len(pair.scene.objects) for pair in pairs_of(split, 60))

    assert counts == {1: 20, 2: 20, 3: 20}


def test_an_eighth_of_the_kinds_is_never_trained_on_and_the_rest_equally_often() -> None:
    assert len(NEVER_TRAINED) == len(SHAPES) * len(COLOURS) / 8
    assert sorted(shape for shape, _ in NEVER_TRAINED) == sorted(SHAPES)
    assert len({colour for _, colour in NEVER_TRAINED}) == 4

    for split in (TRAIN, HELD_OUT):
        found = kinds(pairs_of(split, 150))
        assert not NEVER_TRAINED & found.keys()
    seen = kinds(pairs_of(TRAIN, 900))
    assert len(seen) == 28
    assert min(seen.values()) > 35  # 1,800 objects / 28 = 64


def test_scenes_of_unseen_pairs_have_one() -> None:
    for pair in pairs_of(UNSEEN_PAIRS, 90):
        assert NEVER_TRAINED & kinds([pair]).keys()


def test_no_scene_is_in_two_splits() -> None:
    scenes = {split: {pair.scene for pair in pairs_of(split, 300)} for split in SPLITS}

    for split, found in scenes.items():
        assert {split_of(scene) for scene in found} == {split}


def test_a_tenth_of_the_other_scenes_is_held_out() -> None:
    splits = Counter(split_of(scene) for scene in all_scenes(1))
    splits.update(split_of(scene) for scene in list(all_scenes(2))[::7])

    share = splits[HELD_OUT] / (splits[HELD_OUT] + splits[TRAIN])
    assert share == pytest.approx(0.1, abs=0.02)  # 3 standard deviations of 2,700 scenes
    assert splits[UNSEEN_PAIRS] / splits.total() == pytest.approx(1 - (7 / 8) ** 2, abs=0.03)


def test_another_variety_has_the_same_scenes() -> None:
    moderate, varied = pairs_of(TRAIN, 90), pairs_of(TRAIN, 90, variety="varied")

    assert [pair.scene for pair in moderate] == [pair.scene for pair in varied]
    assert [pair.look for pair in moderate] != [pair.look for pair in varied]


def test_seed_split_and_position_decide_a_pair() -> None:
    first = scene_pair(VARIETIES["varied"], seed=0, split=TRAIN, index=5)

    assert first == scene_pair(VARIETIES["varied"], seed=0, split=TRAIN, index=5)
    for change in ({"seed": 1}, {"split": HELD_OUT}, {"index": 8}):
        other = scene_pair(VARIETIES["varied"], **{"seed": 0, "split": TRAIN, "index": 5, **change})
        assert other != first


def test_a_pair_is_the_same_in_another_process() -> None:
    code = (
        "from ernie_vilg.shapes.splits import scene_pair\n"
        "from ernie_vilg.shapes.variety import VARIETIES\n"
        "import hashlib\n"
        "pair = scene_pair(VARIETIES['varied'], seed=0, split='train', index=5)\n"
        "print(pair.caption, hashlib.sha256(pair.draw().tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [
        "右下方是一个小的黄色圆圈，左下方是一个大的黄色三角形，左上方是一个小号的橙色圆形",
        "c7b741c64eedf93d36ede258e4b75a5278cc48f6f20a594845c91e50a5bcedbd",
    ]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split='test': choose one of train, held_out"):
        scene_pair(VARIETIES["moderate"], seed=0, split="test", index=0)
