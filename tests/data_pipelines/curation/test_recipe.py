"""The paper's recipe on two small crawls, from the command line's settings to shards."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.building.build import build_image_shards
from data_pipelines.rejections import Reason
from ernie_vilg.config.shards import BuildShardsConfig
from launch.support.composition import compose_program

KEPT = ["北京故宫的红墙", "iPhone手机壳", "臺灣風景"]
WEB = {
    "¥199包邮 ★★★": Reason.SPECIAL_CHARACTERS,
    "IMG_2034.jpg": Reason.SPECIAL_CHARACTERS,
    "A red wall": Reason.LANGUAGE,
    "美しい富士山": Reason.LANGUAGE,
    "2034": Reason.LANGUAGE,
    "立即购买": Reason.TOO_FEW_NOUNS,
    "红 黄 蓝 绿 黑 白 紫 灰 粉 橙 金 银 铜 铁 锡": Reason.TOO_MANY_WORDS,
}


def write_source(folder: Path, captions: list[str]) -> None:
    """Write captions, each with a picture of noise: no two are similar."""
    folder.mkdir()
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
        for number, caption in enumerate(captions):
            draw = np.random.default_rng([len(folder.name), number])
            noise = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.png")
            row = {"image": f"{number}.png", "caption": caption}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def rejected_rows(folder: Path) -> Mapping[str, str]:
    lines = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["caption"]: row["reason"] for row in map(json.loads, lines)}


def test_the_recipe_rejects_each_row_by_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_source(tmp_path / "web", [*KEPT, *WEB])
    write_source(tmp_path / "search", ["狗", "立即购买", "a dog"])  # queries need no noun
    config: BuildShardsConfig = compose_program(
        "build_shards",
        [
            f"sources.web.location={tmp_path / 'web'}",
            f"sources.search.location={tmp_path / 'search'}",
            "curation=ernie_vilg",
            "curation.rules.web.min_similarity=null",
            "curation.rules.wbe.max_words=3",
            f"output_dir={tmp_path / 'shards'}",
            "image_size=32",
        ],
    )

    report = build_image_shards(config)

    assert report.sources["web"].kept == len(KEPT)
    assert report.sources["search"].kept == 2
    assert rejected_rows(tmp_path / "shards") == {**WEB, "a dog": Reason.LANGUAGE}
    assert "source web: curation.rules.web" in caplog.text
    assert "no source has these rules: curation.rules.conceptual_captions, wbe" in caplog.text
