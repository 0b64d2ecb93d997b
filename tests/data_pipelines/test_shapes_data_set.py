"""The built-in scenes are written as raw pairs."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipelines import shapes_data_set
from data_pipelines.shapes_data_set import write_shapes
from ernie_vilg.config.shapes import DrawShapesConfig
from ernie_vilg.shapes.captions import parse_caption
from ernie_vilg.shapes.evaluation_sets import LOOK, scene_pairs
from ernie_vilg.shapes.splits import scene_pair, split_of
from ernie_vilg.shapes.variety import VARIETIES


def config(folder: Path, **settings: Any) -> DrawShapesConfig:
    counts = {"train_scenes": 30, "held_out_scenes": 9, "unseen_pair_scenes": 6}
    return DrawShapesConfig(output_dir=str(folder), **{**counts, **settings})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "captions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("variety", VARIETIES)
def test_splits_are_folders_of_raw_pairs(variety: str, tmp_path: Path) -> None:
    counts = write_shapes(config(tmp_path / "raw", variety=variety, seed=2))

    assert counts == {"train": 30, "held_out": 9, "unseen_pairs": 6}
    for split, count in counts.items():
        folder = tmp_path / "raw" / split
        pairs = lines_of(folder)
        assert len(pairs) == len(list((folder / "images").iterdir())) == count
        for index, pair in enumerate(pairs):
            expected = scene_pair(VARIETIES[variety], seed=2, split=split, index=index)
            assert pair["caption"] == expected.caption
            scene = parse_caption(pair["caption"])
            assert scene is not None
            assert split_of(scene) == split
            with Image.open(folder / pair["image"]) as image:
                assert image.format == "PNG"
                assert image.tobytes() == expected.draw().tobytes()


def test_lines_of_evaluation_hold_the_look_and_those_of_training_do_not(tmp_path: Path) -> None:
    write_shapes(config(tmp_path / "raw"))

    assert {frozenset(line) for line in lines_of(tmp_path / "raw/train")} == {
        frozenset({"image", "caption"})
    }
    for split in ("held_out", "unseen_pairs"):
        lines = lines_of(tmp_path / "raw" / split)
        assert all(set(line) == {"image", "caption", LOOK} for line in lines)
        for line, pair in zip(lines, scene_pairs(lines), strict=True):
            with Image.open(tmp_path / "raw" / split / line["image"]) as image:
                assert image.tobytes() == pair.draw().tobytes()


def test_the_bytes_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shapes(config(tmp_path / "one"))
    monkeypatch.setattr(shapes_data_set, "_SCENES_PER_TASK", 8)
    write_shapes(config(tmp_path / "two", num_workers=2))

    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_smaller_data_set_is_the_start_of_a_larger_one(tmp_path: Path) -> None:
    write_shapes(config(tmp_path / "small", train_scenes=5))
    write_shapes(config(tmp_path / "large"))

    small, large = (lines_of(tmp_path / name / "train") for name in ("small", "large"))
    assert small == large[:5]
    assert lines_of(tmp_path / "small/held_out") == lines_of(tmp_path / "large/held_out")


def test_the_seed_changes_the_scenes(tmp_path: Path) -> None:
    write_shapes(config(tmp_path / "first"))
    write_shapes(config(tmp_path / "second", seed=1))

    assert lines_of(tmp_path / "first/train") != lines_of(tmp_path / "second/train")


def test_an_unknown_variety_is_refused() -> None:
    with pytest.raises(ValueError, match="variety=plain: choose moderate, exact or varied"):
        DrawShapesConfig(output_dir="x", variety="plain")  # type: ignore[arg-type]
