"""Copies of a picture are on one side of the split, whether or not they are rejected."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from PIL import Image

from data_pipelines.building.build import build_image_shards
from ernie_vilg.config.curation import CurationConfig, DeduplicationConfig
from ernie_vilg.config.shards import BuildShardsConfig

NUM_PICTURES = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 8 pictures, then a brighter copy of each."""
    folder = tmp_path_factory.mktemp("held_out") / "source"
    folder.mkdir()
    noise = np.random.default_rng(5)
    lines = []
    for number in range(NUM_PICTURES):
        coarse = noise.integers(0, 200, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
        for kind, shown in (("a", picture), ("b", picture.point(lambda value: value + 20))):
            name = f"{kind}{number}.png"
            shown.save(folder / name)
            lines.append({"image": name, "caption": f"{kind} {number}"})
    lines.sort(key=lambda line: line["caption"])
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def rows_of(source: Path, name: str, **settings: Any) -> list[tuple[Any, ...]]:
    """Build shards; return (picture_id, verdict, split, cluster) of every row."""
    output = source.parent / name
    build_image_shards(
        BuildShardsConfig(
            source=str(source),
            output_dir=str(output),
            image_size=8,
            samples_per_shard=4,
            rows_per_part=5,
            hold_out_fraction=0.5,
            **settings,
        )
    )
    return duckdb.sql(
        "select picture_id, verdict, split, cluster "
        f"from read_parquet('{output}/metadata/*.parquet') order by part, row"
    ).fetchall()


@pytest.mark.parametrize("exact", [False, True], ids=["no rule", "with equal pictures"])
def test_near_copies_that_are_all_kept_are_held_out_together(source: Path, exact: bool) -> None:
    curation = CurationConfig(deduplication=DeduplicationConfig(exact_pictures=exact))
    rows = rows_of(source, f"exact_{exact}", curation=curation)

    assert [verdict for _, verdict, _, _ in rows] == ["kept"] * 2 * NUM_PICTURES
    split = {name: split for name, _, split, _ in rows}
    assert {split[f"a{n}.png"] == split[f"b{n}.png"] for n in range(NUM_PICTURES)} == {True}
    assert set(split.values()) == {"train", "held_out"}
    # A cluster has the number of its first row.
    clusters = {name: cluster for name, _, _, cluster in rows}
    assert clusters == {f"{kind}{n}.png": n for kind in "ab" for n in range(NUM_PICTURES)}


def test_a_picture_is_on_the_same_side_whether_its_copies_are_rejected(source: Path) -> None:
    curation = CurationConfig(deduplication=DeduplicationConfig(near_pictures=31))
    kept = rows_of(source, "all_kept")
    rejected = rows_of(source, "one_kept", curation=curation)

    survivors = {name: split for name, verdict, split, _ in rejected if verdict == "kept"}
    assert len(survivors) == NUM_PICTURES
    assert survivors.items() <= {name: split for name, _, split, _ in kept}.items()
