"""Shards that were built and encoded pass their audit, and fail it after a bit has flipped."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipelines.building.build import build_image_shards
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import read_json
from tests.data_pipelines.audit.made import encode, write_tokenizers
from tests.launch.test_data_programs import ROOT


def audit(folder: Path, name: str, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "launch/audit_shards.py",
            f"image_shards={folder}/images",
            f"token_shards={folder}/tokens",
            f"text_tokenizer_dir={folder}/text",
            f"image_tokenizer_dir={folder}/vqgan",
            f"output_dir={folder}/{name}",
            *settings,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def without_detail(path: Path) -> dict[str, Any]:
    """Return the outcomes of an audit by the name of the check."""
    return {check["name"]: check["outcome"] for check in read_json(path)["checks"]}


def build_and_encode(folder: Path) -> None:
    """Write 12 pictures, of which one has two captions and one is missing; build and encode."""
    (folder / "raw").mkdir()
    lines = [{"image": "nowhere.png", "caption": "no picture"}]
    for number in range(12):
        Image.fromarray(
            np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        ).save(folder / "raw" / f"{number}.png")
        lines.append({"image": f"{number}.png", "caption": f"第{number}张图片"})
    lines.append({"image": "3.png", "caption": "一张图片"})
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "raw" / "captions.jsonl").write_text(text, encoding="utf-8")
    build_image_shards(
        BuildShardsConfig(
            source=str(folder / "raw"),
            output_dir=str(folder / "images"),
            image_size=8,
            samples_per_shard=4,
            hold_out_fraction=0.2,
            max_faulty_fraction=0.1,
        )
    )
    write_tokenizers(folder)
    encode(folder)


def test_what_was_built_and_encoded_passes_and_a_flipped_bit_fails(tmp_path: Path) -> None:
    build_and_encode(tmp_path)

    sound = audit(tmp_path, "sound", "text_length=64")
    shard = tmp_path / "images" / "images-00001.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 4
    shard.write_bytes(content)
    damaged = audit(tmp_path, "damaged", "num_workers=2", "text_length=64")

    assert sound.returncode == 0, sound.stderr
    outcomes = without_detail(tmp_path / "sound" / "audit.json")
    assert set(outcomes.values()) == {"passed", "not checked"}
    assert [name for name, outcome in outcomes.items() if outcome == "not checked"] == ["drift"]
    assert "<h2>Rejected, by reason</h2>" in (tmp_path / "sound" / "report.html").read_text()
    assert damaged.returncode == 1
    changed = without_detail(tmp_path / "damaged" / "audit.json").items() - outcomes.items()
    assert changed == {("image_files", "failed")}
    assert "images-00001.tar differs from the manifest's SHA-256" in damaged.stderr
    assert "failed: Image shards and their indexes have" in damaged.stdout
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == [
        "audit.json", "report.html",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, "image_shards=null and token_shards=null: name", id="nothing to audit"),
        pytest.param(
            {"image_shards": "a", "text_length": 9},
            "text_length=9 with token_shards=null: it checks token shards",
            id="a length without token shards",
        ),
        pytest.param(
            {"image_shards": "a", "ray_address": "auto"},
            "ray_address=auto with executor=processes",
            id="an address without ray",
        ),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AuditShardsConfig(**settings, output_dir="o")
