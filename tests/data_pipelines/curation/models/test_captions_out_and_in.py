"""Captions that a person translates: out of a first building, into a second one."""

import json
import re
import shlex
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from data_pipelines.building.build import build_image_shards
from ernie_vilg.config.curation import CurationConfig, Rules
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.data.shards.open_shards import read_shard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import read_manifest

DOCUMENT = Path(__file__).parents[4] / "docs" / "curation.md"
ENGLISH = ["a red circle", "a blue tile", "a red circle", " the\u200b 'green' ring "]
CHINESE = {"a red circle": "红色的圆", "the 'green' ring": "绿色的环", "a blue tile": ""}


def documented_export(metadata: Path, captions: Path) -> str:
    """Return the program of the documented command, for other paths."""
    (command,) = re.findall(r"^python -c .*not_translated.*$", DOCUMENT.read_text(), re.MULTILINE)
    program = shlex.split(command)[2]
    for documented, path in (
        ("outputs/curated_shards/metadata/*.parquet", metadata / "*.parquet"),
        ("captions.jsonl", captions),
    ):
        assert documented in program
        program = program.replace(documented, str(path))
    return program


def test_captions_out_and_translations_in(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = []
    for number, caption in enumerate(ENGLISH):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(raw / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": caption}))
    (raw / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    translations = tmp_path / "translations.jsonl"
    translations.touch()
    config = BuildShardsConfig(
        source=str(raw),
        output_dir=str(tmp_path / "shards"),
        image_size=32,
        curation=CurationConfig(
            rules={"default": Rules(translate=True)}, translation_file=str(translations)
        ),
    )
    with pytest.raises(InputError, match=r"4 of 4 rows are rejected .not_translated: 4"):
        build_image_shards(config)

    out = tmp_path / "captions.jsonl"
    metadata = tmp_path / ".building-shards" / "shards" / "metadata"
    exec(documented_export(metadata, out), {"duckdb": duckdb})
    texts = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert texts == sorted(CHINESE)

    translated = [{"text": text, "translation": CHINESE[text]} for text in texts]
    translations.write_text("\n".join(map(json.dumps, translated)), encoding="utf-8")
    build_image_shards(config)
    manifest = read_manifest(tmp_path / "shards", "image")
    samples = list(read_shard(tmp_path / "shards", manifest.shards[0]))
    assert [sample["txt"].decode() for sample in samples] == ["红色的圆", "红色的圆", "绿色的环"]
    assert len(manifest.lineage["translation_file"]) == 64
    rows = duckdb.sql(
        f"SELECT verdict, caption, original_caption, transforms, reason "
        f"FROM '{tmp_path}/shards/metadata/*.parquet' ORDER BY row"
    ).fetchall()
    assert rows[:2] == [
        ("kept", "红色的圆", "a red circle", "translated", None),
        ("rejected", "a blue tile", None, None, "not_translated"),
    ]
