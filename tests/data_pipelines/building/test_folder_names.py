"""Names of folders are names, whatever they mean to a shell, to SQL or to a reader of tables."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.audit.audit import audit_shards
from data_pipelines.building.build import build_image_shards
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.config.curation import CurationConfig, DeduplicationConfig
from ernie_vilg.config.shards import BuildShardsConfig


@pytest.mark.parametrize(
    "name", ["it's [a-c] *? {x}", "source=web/part=7"], ids=["wildcards", "column=value"]
)
def test_shards_are_built_and_audited_in_a_folder_with_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    source = folder / "pairs"
    source.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number,) * 3).save(source / f"{number}.png")
    lines = [{"image": f"{number}.png", "caption": f"caption {number}"} for number in range(4)]
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    near = DeduplicationConfig(near_pictures=31, near_texts=0.9, exact_pictures=True)

    report = build_image_shards(
        BuildShardsConfig(
            source=str(source),
            output_dir=str(folder / "shards"),
            image_size=4,
            samples_per_shard=2,
            rows_per_part=2,
            hold_out_fraction=0.3,
            curation=CurationConfig(deduplication=near),
        )
    )

    assert (report.counts.rows, report.counts.kept) == (4, 4)
    found = audit_shards(
        AuditShardsConfig(image_shards=str(folder / "shards"), output_dir="unused"),
        folder,
    )
    assert [check.claim for check in found.failed] == []
    assert found.rows is not None
    assert [(row.source, row.read) for row in found.rows.sources] == [("source", 4)]
    assert sorted(path.name for path in folder.iterdir()) == ["pairs", "shards"]
