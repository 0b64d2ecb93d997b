"""The built-in scenes are written as raw pairs."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.shapes_data_set import choose_scenes, write_shapes
from ernie_vilg.config.shapes import DrawShapesConfig
from ernie_vilg.shapes.scenes import draw_scene, is_held_out, parse_caption


def config(folder: Path, **settings: int) -> DrawShapesConfig:
    return DrawShapesConfig(
        output_dir=str(folder), **{"train_scenes": 30, "held_out_scenes": 10, **settings}
    )


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_both_splits_are_folders_of_raw_pairs(tmp_path: Path) -> None:
    counts = write_shapes(config(tmp_path / "raw"))

    assert counts == {"train": 30, "held_out": 10}
    for split, count in counts.items():
        folder = tmp_path / "raw" / split
        lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        pairs = [json.loads(line) for line in lines]
        assert len(pairs) == len(list((folder / "images").iterdir())) == count
        for pair in pairs:
            assert set(pair) == {"image", "caption"}
            scene = parse_caption(pair["caption"])
            assert scene is not None
            assert is_held_out(scene) == (split == "held_out")
            with Image.open(folder / pair["image"]) as image:
                assert image.format == "PNG"
                assert image.tobytes() == draw_scene(scene).tobytes()


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    # More scenes than fit in one task.
    write_shapes(config(tmp_path / "one", train_scenes=600))
    write_shapes(config(tmp_path / "two", train_scenes=600, num_workers=2))

    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_by_default_every_scene_is_trained_on_or_held_out() -> None:
    chosen = choose_scenes(DrawShapesConfig(output_dir="unused", held_out_scenes=2470))

    assert len(chosen["train"]) + len(chosen["held_out"]) == 24_832


def test_the_seed_names_the_order() -> None:
    first = choose_scenes(DrawShapesConfig(output_dir="unused", seed=0))
    same = choose_scenes(DrawShapesConfig(output_dir="unused", seed=0))
    other = choose_scenes(DrawShapesConfig(output_dir="unused", seed=1))

    assert first == same
    assert first["train"] != other["train"]
    assert set(first["train"]) == set(other["train"])
    assert set(first["held_out"]) != set(other["held_out"])


def test_more_scenes_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="held_out_scenes=2471: there are 2470"):
        write_shapes(config(tmp_path / "raw", held_out_scenes=2471))

    assert list(tmp_path.iterdir()) == []
